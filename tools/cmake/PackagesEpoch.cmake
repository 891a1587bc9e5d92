# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Sets `epoch`: the time of everything in a package.  The caller's SOURCE_DATE_EPOCH, or that of the last commit; where
# there is no repository, of NEWS.md.
set(epoch "$ENV{SOURCE_DATE_EPOCH}")
if(NOT epoch)
  execute_process(COMMAND git -C ${CPACK_QM_SOURCE} log -1 --format=%ct OUTPUT_VARIABLE epoch ERROR_QUIET
    OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT epoch)
  file(TIMESTAMP ${CPACK_QM_SOURCE}/NEWS.md epoch %s UTC)
endif()
if(NOT epoch MATCHES "^[0-9]+$")
  message(FATAL_ERROR "SOURCE_DATE_EPOCH is no number of seconds: ${epoch}")
endif()
