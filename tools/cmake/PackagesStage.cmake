# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Between CPack's staging and its packing: what Debian's policy wants of the files of each package.  Sections of it in
# brackets.
if(NOT CPACK_GENERATOR STREQUAL "DEB")
  return()
endif()
include(${CPACK_QM_SOURCE}/tools/cmake/PackagesEpoch.cmake)
execute_process(COMMAND date -u -R -d @${epoch} OUTPUT_VARIABLE date OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
set(version ${CPACK_PACKAGE_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE})

foreach(component ${CPACK_COMPONENTS_ALL})
  string(TOUPPER ${component} upper)
  set(package ${CPACK_DEBIAN_${upper}_PACKAGE_NAME})
  set(root ${CPACK_TEMPORARY_DIRECTORY}/${component})
  set(doc ${root}/usr/share/doc/${package})
  file(MAKE_DIRECTORY ${doc})

  # [12.5], [12.7]
  configure_file(${CPACK_QM_SOURCE}/tools/cmake/debian/copyright ${doc}/copyright COPYONLY)
  file(WRITE ${doc}/changelog.Debian "qmeld (${version}) stable; urgency=medium\n\n  * See changelog.gz, and \
README.md of qmeld.\n\n -- ${CPACK_PACKAGE_CONTACT}  ${date}\n")
  configure_file(${CPACK_QM_SOURCE}/NEWS.md ${doc}/changelog COPYONLY)
  file(WRITE ${root}/usr/share/lintian/overrides/${package}
    "# These packages are the project's own: no bug of Debian asked for them.\n"
    "${package}: initial-upload-closes-no-bugs\n")
  file(GLOB_RECURSE pages ${root}/usr/share/man/*) # [12.1]
  execute_process(COMMAND gzip -9nf ${doc}/changelog ${doc}/changelog.Debian ${pages} COMMAND_ERROR_IS_FATAL ANY)

  # [10.1], [10.2]
  file(GLOB_RECURSE files LIST_DIRECTORIES false ${root}/usr/bin/* ${root}/usr/lib/*)
  foreach(file ${files})
    if(IS_SYMLINK ${file})
      continue()
    elseif(file MATCHES "[.]a$")
      set(how --strip-debug --enable-deterministic-archives)
    elseif(file MATCHES "[.]so([.]|$)|/bin/")
      set(how --strip-unneeded)
    else()
      continue()
    endif()
    execute_process(COMMAND ${CPACK_QM_STRIP} ${how} --remove-section=.comment --remove-section=.note ${file}
      COMMAND_ERROR_IS_FATAL ANY)
  endforeach()
endforeach()
