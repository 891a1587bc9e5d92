# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What is installed, where, and in which of the four packages (tools/cmake/Packages.cmake):
#
#   cli       qmeld          the program, its manual pages, completion, units
#   runtime   libqmeld0      libqmeld.so.0
#   dev       libqmeld-dev   headers, libqmeld.so and .a, pkg-config, CMake, manual pages of section 3
#   live      qmeld-live     the module that needs libvirt
#
# `cmake --install build/release` installs all; --component one of them.
include(CMakePackageConfigHelpers)

if(NOT QMELD_STATIC) # one file, and nothing beside it
  install(TARGETS qmeld_shared EXPORT qmeldTargets
    LIBRARY COMPONENT runtime NAMELINK_COMPONENT dev)
  install(TARGETS qmeld_static EXPORT qmeldStaticTargets ARCHIVE COMPONENT dev)
  install(DIRECTORY include/ TYPE INCLUDE COMPONENT dev FILES_MATCHING PATTERN "*.h")
endif()
install(TARGETS qmeld RUNTIME COMPONENT cli)
# By this name it means what qemu-img means (docs/from-qemu-img.md).
file(CREATE_LINK qmeld ${CMAKE_BINARY_DIR}/qmeld-img SYMBOLIC)
install(FILES ${CMAKE_BINARY_DIR}/qmeld-img TYPE BIN COMPONENT cli)
if(TARGET qmeld-live)
  install(TARGETS qmeld-live LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/qmeld COMPONENT live)
endif()

# Manual pages: each file docs/**/NAME.SECTION.
file(GLOB_RECURSE manuals CONFIGURE_DEPENDS docs/*.[1-8])
foreach(page ${manuals})
  string(REGEX MATCH "[1-8]$" section ${page})
  set(component cli)
  if(section EQUAL 3)
    set(component dev)
  endif()
  install(FILES ${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section} COMPONENT ${component})
endforeach()

# README.md finds docs/ beside itself, as in the sources.
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT cli)
file(GLOB_RECURSE pages RELATIVE ${CMAKE_SOURCE_DIR} CONFIGURE_DEPENDS docs/*.md docs/*.svg docs/*.c)
foreach(page ${pages}) # install(DIRECTORY) would make the folders, too, of which it installs nothing
  get_filename_component(folder ${page} DIRECTORY)
  install(FILES ${page} DESTINATION ${CMAKE_INSTALL_DOCDIR}/${folder} COMPONENT cli)
endforeach()

# For programs that use the library: pkg-config, and find_package(qmeld).
if(QM_ISAL)
  set(QM_PC_ISAL ", libisal >= 2.30")
  set(QM_CONFIG_ISAL "ISAL=libisal")
endif()
if(QM_NBD)
  set(QM_PC_DL " -l${CMAKE_DL_LIBS}")
endif()
set(QM_CONFIG_NEEDS "ZLIB=zlib ZSTD=libzstd JSONC=json-c CRYPTO=libcrypto ${QM_CONFIG_ISAL}")
set(QM_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/qmeld)
# The .pc file finds its prefix by its own place, so that `cmake --install --prefix` may move it.
file(RELATIVE_PATH QM_PC_TO_PREFIX /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
string(REGEX REPLACE "/$" "" QM_PC_TO_PREFIX "${QM_PC_TO_PREFIX}")
configure_file(tools/cmake/qmeld.pc.in qmeld.pc @ONLY)
configure_package_config_file(tools/cmake/qmeldConfig.cmake.in qmeldConfig.cmake INSTALL_DESTINATION ${QM_CMAKE_DIR})
# While the first number is 0, a higher second one may change what programs see.
write_basic_package_version_file(qmeldConfigVersion.cmake COMPATIBILITY SameMinorVersion)
if(NOT QMELD_STATIC)
  install(FILES ${CMAKE_BINARY_DIR}/qmeld.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)
  install(FILES ${CMAKE_BINARY_DIR}/qmeldConfig.cmake ${CMAKE_BINARY_DIR}/qmeldConfigVersion.cmake
    DESTINATION ${QM_CMAKE_DIR} COMPONENT dev)
  set_target_properties(qmeld_shared PROPERTIES EXPORT_NAME qmeld)
  set_target_properties(qmeld_static PROPERTIES EXPORT_NAME static)
  install(EXPORT qmeldTargets NAMESPACE qmeld:: DESTINATION ${QM_CMAKE_DIR} COMPONENT dev)
  install(EXPORT qmeldStaticTargets NAMESPACE qmeld:: DESTINATION ${QM_CMAKE_DIR} COMPONENT dev)
endif()

add_custom_target(uninstall COMMAND ${CMAKE_COMMAND} -DBUILD=${CMAKE_BINARY_DIR} -P ${CMAKE_SOURCE_DIR}/tools/cmake/uninstall.cmake
  COMMENT "removing what was installed from here" VERBATIM)
