# SPDX-License-Identifier: LGPL-2.1-or-later
# fish completion of qmeld.  What there is to offer the program says itself (`qmeld help --options`), so that it
# is what this very program takes.

function __qmeld_value --argument-names takes typed domain
    switch $takes
        case 'words:*'
            string split , (string replace words: '' -- $takes)
        case directory
            __fish_complete_directories $typed ''
        case file layer image path manifest
            __fish_complete_path $typed ''
        case domain
            virsh -q list --all --name 2>/dev/null | string match -r '\S.*'
        case disk
            virsh -q domblklist $domain 2>/dev/null | awk '{ print $1 }'
        case snapshot
            virsh -q snapshot-list --name $domain 2>/dev/null | string match -r '\S.*'
    end
end

function __qmeld_complete
    set -l tokens (commandline -opc)
    set -l typed (commandline -ct)
    set -l program $tokens[1]
    if test (count $tokens) -eq 1; or begin; test (count $tokens) -eq 2; and test $tokens[2] = help; end
        $program help --options 2>/dev/null
        test (count $tokens) -eq 1; and printf 'help\texplain a command\n--version\tprint the version\n'
        return
    end
    set -l kinds
    set -l names
    set -l takes
    set -l offered
    for line in ($program help --options $tokens[2] 2>/dev/null)
        set -l part (string split \t -- $line)
        if test $part[1] = operands
            set kinds (string split ' ' -- $part[2])
            continue
        end
        test $part[2] = refused; and continue
        for name in (string split , -- $part[1])
            set -a names $name
            set -a takes $part[2]
            if test $part[2] != none; and string match -q -- '--*' $name
                set -a offered $name=\t$part[3]
            else
                set -a offered $name\t$part[3]
            end
        end
    end
    # --option=VALUE, or VALUE behind an option that takes one
    set -l option (string match -r -- '^--[^=]+(?==)' $typed)
    if test -n "$option"
        set -l at (contains -i -- $option $names); or return
        for value in (__qmeld_value $takes[$at] (string replace -r -- '^--[^=]+=' '' $typed))
            echo $option=$value
        end
        return
    end
    set -l at (contains -i -- $tokens[-1] $names)
    if test -n "$at"; and test $takes[$at] != none
        __qmeld_value $takes[$at] $typed
        return
    end
    if string match -q -- '-*' $typed
        printf '%s\n' $offered
        return
    end
    # which operand it is
    set -l operands
    set -l skip no
    for token in $tokens[3..-1]
        if test $skip = yes
            set skip no
        else if string match -q -- '-?*' $token
            set at (contains -i -- $token $names); and test $takes[$at] != none; and set skip yes
        else
            set -a operands $token
        end
    end
    set -l n (math (count $operands) + 1)
    if test $n -gt (count $kinds)
        string match -q '*...' -- $kinds[-1]; or return
        set n (count $kinds)
    end
    __qmeld_value (string replace ... '' -- $kinds[$n]) $typed $operands[1]
end

complete -c qmeld -f -a '(__qmeld_complete)'
