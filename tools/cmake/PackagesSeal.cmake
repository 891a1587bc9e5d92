# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What CPack has packed, packed anew by dpkg-deb: names in order, root as the owner, modes of Debian's policy, times no
# later than SOURCE_DATE_EPOCH, so that the same files are the same package.  On the way CPack's scripts that call
# ldconfig become the trigger that does (Debian policy 8.1.1), and libraries may be there for several architectures.
if(NOT CPACK_GENERATOR STREQUAL "DEB")
  return()
endif()
include(${CPACK_QM_SOURCE}/tools/cmake/PackagesEpoch.cmake)
foreach(package ${CPACK_PACKAGE_FILES})
  set(root ${package}.root)
  file(REMOVE_RECURSE ${root})
  execute_process(COMMAND dpkg-deb -R ${package} ${root} COMMAND_ERROR_IS_FATAL ANY)
  get_filename_component(name ${package} NAME)
  if(EXISTS ${root}/DEBIAN/shlibs)
    file(REMOVE ${root}/DEBIAN/postinst ${root}/DEBIAN/postrm)
    file(WRITE ${root}/DEBIAN/triggers "activate-noawait ldconfig\n")
  endif()
  file(READ ${root}/DEBIAN/control control)
  if(name MATCHES "^libqmeld")
    string(REGEX REPLACE "(^|\n)Architecture:" "\\1Multi-Arch: same\nArchitecture:" control "${control}")
  endif()
  execute_process(COMMAND du -sk --apparent-size --exclude=DEBIAN ${root} OUTPUT_VARIABLE size COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX REPLACE "[^0-9].*" "" size ${size})
  string(REGEX REPLACE "Installed-Size: [0-9]+" "Installed-Size: ${size}" control "${control}")
  file(WRITE ${root}/DEBIAN/control "${control}")
  # whatever the umask is of who builds
  execute_process(COMMAND find ${root} ( -type d -o -type f -perm /111 ) -exec chmod 0755 {} + COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND find ${root} -type f ! -perm /111 -exec chmod 0644 {} + COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND find ${root} -exec touch -h -d @${epoch} {} + COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${CMAKE_COMMAND} -E env SOURCE_DATE_EPOCH=${epoch}
    dpkg-deb --root-owner-group --threads-max=1 -Zxz -b ${root} ${package}
    OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
  file(REMOVE_RECURSE ${root})
endforeach()
