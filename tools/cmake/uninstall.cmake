# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Removes what the last `cmake --install` of this build folder put somewhere: `cmake --build build/release --target
# uninstall`, with the DESTDIR of the install if it had one.  Folders go if they are empty and ours.
set(manifest ${BUILD}/install_manifest.txt)
if(NOT EXISTS ${manifest})
  message(FATAL_ERROR "${manifest} is not there: nothing was installed from this folder")
endif()
file(STRINGS ${manifest} files)
foreach(file ${files})
  set(file "$ENV{DESTDIR}${file}")
  if(EXISTS "${file}" OR IS_SYMLINK "${file}")
    message(STATUS "Removing: ${file}")
    file(REMOVE "${file}")
  endif()
  get_filename_component(folder "${file}" DIRECTORY)
  while(folder MATCHES "/qmeld(/docs(/[a-z]+)*)?$") # lib/qmeld, lib/cmake/qmeld, share/doc/qmeld, ...
    file(GLOB rest "${folder}/*" "${folder}/.?*")
    list(FILTER rest EXCLUDE REGEX "/[.][.]?$")
    if(rest OR NOT IS_DIRECTORY "${folder}")
      break()
    endif()
    file(REMOVE_RECURSE "${folder}")
    get_filename_component(folder "${folder}" DIRECTORY)
  endwhile()
endforeach()
