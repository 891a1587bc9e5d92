# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion of qmeld.  What there is to offer the program says itself (`qmeld help --options`), so that it
# is what this very program takes.  Needs nothing but bash.

# What the word being typed may become, from a list; a prefix goes in front of each.
_qmeld_words() {
    local prefix=$1 typed=$2
    shift 2
    mapfile -t COMPREPLY < <(compgen -P "$prefix" -W "$*" -- "$typed")
}

_qmeld_value() {
    local takes=$1 prefix=$2 typed=$3
    case $takes in
    words:*)
        takes=${takes#words:}
        _qmeld_words "$prefix" "$typed" "${takes//,/ }"
        ;;
    directory)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -P "$prefix" -d -- "$typed")
        ;;
    file | layer | image | path* | manifest)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -P "$prefix" -f -- "$typed")
        ;;
    domain)
        _qmeld_words "$prefix" "$typed" "$(virsh -q list --all --name 2>/dev/null)"
        ;;
    disk)
        _qmeld_words "$prefix" "$typed" "$(virsh -q domblklist "$4" 2>/dev/null | awk '{ print $1 }')"
        ;;
    snapshot)
        _qmeld_words "$prefix" "$typed" "$(virsh -q snapshot-list --name "$4" 2>/dev/null)"
        ;;
    esac
}

# What an option takes; fails if there is none such.
_qmeld_takes() {
    local names takes what name
    while IFS=$'\t' read -r names takes what; do
        for name in ${names//,/ }; do
            if [[ $name == "$1" ]]; then
                printf '%s' "$takes"
                return 0
            fi
        done
    done <<<"$2"
    return 1
}

# The operand that the word at COMP_CWORD is: its number among those that are no options and no values.
_qmeld_operand() {
    local kinds=$1 options=$2 typed=$3 i n=0 word takes words=()
    for ((i = 2; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ ${COMP_WORDS[i + 1]-} == = ]]; then
            ((i += 2))
        elif [[ $word == -?* && $word != *=* ]] && takes=$(_qmeld_takes "$word" "$options"); then
            [[ $takes == none ]] || ((i++))
        elif [[ $word != -?* ]]; then
            words[n++]=$word
        fi
    done
    read -ra kinds <<<"$kinds"
    if ((n >= ${#kinds[@]})); then
        [[ ${kinds[-1]} == *... ]] || return 0
        n=$((${#kinds[@]} - 1))
    fi
    _qmeld_value "${kinds[n]%...}" "" "$typed" "${words[0]-}"
}

_qmeld() {
    local typed=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local program=${COMP_WORDS[0]} command=${COMP_WORDS[1]} options takes prefix=
    COMPREPLY=()
    if ((COMP_CWORD == 1)) || { ((COMP_CWORD == 2)) && [[ $command == help ]]; }; then
        options=$("$program" help --options 2>/dev/null | cut -f1)
        ((COMP_CWORD == 2)) || options+=" help --version --help"
        _qmeld_words "" "$typed" "$options"
        return
    fi
    options=$("$program" help --options "$command" 2>/dev/null) || return
    # bash makes three words of --option=value, unless = was taken out of COMP_WORDBREAKS
    if [[ $typed == --*=* ]]; then
        before=${typed%%=*} typed=${typed#*=} prefix=$before=
    elif [[ $typed == = ]]; then
        typed=
    elif [[ $before == = ]]; then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    if [[ $before == -* ]] && takes=$(_qmeld_takes "$before" "$options") && [[ $takes != none ]]; then
        _qmeld_value "$takes" "$prefix" "$typed"
    elif [[ $typed == -* ]]; then
        _qmeld_words "" "$typed" "$(awk -F '\t' '$1 != "operands" && $2 != "refused" {
            n = split($1, names, ",")
            for (i = 1; i <= n; i++) print names[i] ($2 != "none" && names[i] ~ /^--/ ? "=" : "")
        }' <<<"$options")"
        [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    else
        _qmeld_operand "$(sed -n 's/^operands\t//p' <<<"$options")" "$options" "$typed"
    fi
} && complete -F _qmeld qmeld
