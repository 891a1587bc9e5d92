# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A text file as a C array, with its SHA-256 in base64, as Content-Security-Policy wants it:
#
#     cmake -D IN=page.js -D NAME=qm_page_page_js -D OUT=page_js.c -P embed.cmake

file(READ "${IN}" hex HEX)
string(REGEX REPLACE "(................................)" "\\1\n   " lines "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" " 0x\\1," bytes "${lines}")

# 64 digits and two of padding make 22 groups of three: 44 characters, of which the last stands for nothing
file(SHA256 "${IN}" digest)
set(alphabet "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
set(base64 "")
foreach(at RANGE 0 60 6)
  string(SUBSTRING "${digest}0000" ${at} 6 group)
  foreach(shift 18 12 6 0)
    math(EXPR index "(0x${group} >> ${shift}) & 63")
    string(SUBSTRING "${alphabet}" ${index} 1 letter)
    string(APPEND base64 "${letter}")
  endforeach()
endforeach()
string(SUBSTRING "${base64}" 0 43 base64)

file(WRITE "${OUT}" "/* made from ${NAME}'s file by embed.cmake */
#include \"page.h\"

const char ${NAME}[] = {
   ${bytes} 0
};
const char ${NAME}_digest[] = \"sha256-${base64}=\";
")
