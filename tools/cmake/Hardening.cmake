# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Images are hostile input; should a check be missing, the compiler and the linker make the most of it.  What each is for:
#
#   PIE                  addresses are not known beforehand
#   stack protector      an array overrun on the stack ends the process before it returns
#   stack clash          a large frame touches each of its pages: it cannot jump over the guard page
#   CET                  indirect branches and returns go where the compiler meant, on processors that have it
#   _FORTIFY_SOURCE      libc's calls know the size of what they write to
#   relro, now           the tables of library calls are read-only before main
#   noexecstack          no code on the stack
#
# Sanitizers have checks of their own, and get in the way of these.  tests/hardening reads the built files; what it
# costs is in docs/performance.md.
option(QMELD_HARDENING "build with the compiler's and the linker's defences" ON)

include(CheckCCompilerFlag)
include(CheckLinkerFlag)
include(CheckPIESupported)
check_pie_supported(LANGUAGES C) # CMAKE_POSITION_INDEPENDENT_CODE alone links no -pie
if(QMELD_STATIC)
  set(CMAKE_C_LINK_OPTIONS_PIE -fPIE -static-pie) # beside -pie the linker would take the last of the two
endif()

function(qm_harden target)
  if(NOT QMELD_HARDENING OR QMELD_SANITIZE)
    return()
  endif()
  foreach(flag -fstack-protector-strong -fstack-clash-protection -fcf-protection=full)
    string(MAKE_C_IDENTIFIER "QM_HAS${flag}" has)
    check_c_compiler_flag(${flag} ${has}) # the last is for x86 alone
    if(${has})
      target_compile_options(${target} INTERFACE ${flag})
    endif()
  endforeach()
  # It wants an optimizing compiler.  Distributions set a level of their own: that stays.
  if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT "${CMAKE_C_FLAGS}" MATCHES "_FORTIFY_SOURCE")
    target_compile_options(${target} INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
  endif()
  foreach(flag relro now noexecstack)
    check_linker_flag(C "LINKER:-z,${flag}" QM_HAS_Z_${flag})
    if(QM_HAS_Z_${flag})
      target_link_options(${target} INTERFACE "LINKER:-z,${flag}")
    endif()
  endforeach()
endfunction()
