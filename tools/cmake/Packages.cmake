# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Debian packages: `cmake --workflow --preset deb` builds them in build/deb.  CPack stages each component and asks
# dpkg-shlibdeps what it needs; tools/cmake/PackagesStage.cmake then adds what Debian's policy wants beside the files, and
# tools/cmake/PackagesSeal.cmake packs by dpkg-deb, which writes the same bytes for the same files.  Other systems: `cpack -G TGZ`.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME qmeld)
set(CPACK_PACKAGE_VENDOR qmeld)
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE
  GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(QMELD_PACKAGER "qmeld maintainers <maintainers@qmeld.invalid>" CACHE STRING
  "who answers for the packages: NAME <ADDRESS>")
set(CPACK_PACKAGE_CONTACT "${QMELD_PACKAGER}")
set(CPACK_QM_SOURCE ${CMAKE_SOURCE_DIR}) # for the scripts
set(CPACK_QM_STRIP "${CMAKE_STRIP}")
set(CPACK_PRE_BUILD_SCRIPTS ${CMAKE_SOURCE_DIR}/tools/cmake/PackagesStage.cmake)
set(CPACK_POST_BUILD_SCRIPTS ${CMAKE_SOURCE_DIR}/tools/cmake/PackagesSeal.cmake)
set(CPACK_COMPONENTS_ALL cli runtime dev)
if(TARGET qmeld-live)
  list(APPEND CPACK_COMPONENTS_ALL live)
endif()

if(QMELD_DEB) # CPack would say so after the build, and in words of its own
  foreach(tool dpkg-shlibdeps file)
    find_program(QM_TOOL_${tool} ${tool})
    if(NOT QM_TOOL_${tool})
      message(FATAL_ERROR "${tool} is missing, which Debian packages are made with: install dpkg-dev and file")
    endif()
  endforeach()
endif()
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_SOURCE qmeld)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_DEV_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS_POLICY >=)
set(same "(= ${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE})")

set(CPACK_DEBIAN_CLI_PACKAGE_NAME qmeld)
set(CPACK_DEBIAN_CLI_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_CLI_PACKAGE_SUGGESTS "qmeld-live, qemu-utils")
if(QM_NBD)
  set(CPACK_DEBIAN_CLI_PACKAGE_RECOMMENDS libnbd0) # loaded when an export is opened
  set(CPACK_DEBIAN_RUNTIME_PACKAGE_RECOMMENDS libnbd0)
endif()
set(CPACK_DEBIAN_CLI_DESCRIPTION
"fold chains of qcow2 and raw disk images
The disk of a virtual machine is often a chain: a base image, raw or qcow2,
under qcow2 overlays that hold what has changed since. qmeld merges layers
down into a base, and while it does, and after a crash as well, the top of
the chain reads the same, byte for byte. It also flattens, rebases,
compares, checks, mends, maps and makes such images.
.
It reads and writes qcow2 by itself and contains no QEMU code.")

set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME libqmeld0)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_RUNTIME_DESCRIPTION
"library that folds chains of disk images
libqmeld reads chains of qcow2 and raw images, says which layer answers
which byte, and merges layers so that the top of the chain reads the same
at every instant. It is what the program qmeld is made of.
.
This package has the shared library.")

set(CPACK_DEBIAN_DEV_PACKAGE_NAME libqmeld-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
# What the .pc file requires for static linking; pkg-config wants it there for the shared library, too.
set(needs "libqmeld0 ${same}" zlib1g-dev libzstd-dev libjson-c-dev "libssl-dev (>= 3.0)")
if(QM_ISAL)
  list(APPEND needs libisal-dev)
endif()
list(JOIN needs ", " CPACK_DEBIAN_DEV_PACKAGE_DEPENDS)
set(CPACK_DEBIAN_DEV_DESCRIPTION
"library that folds chains of disk images (development files)
libqmeld reads chains of qcow2 and raw images, says which layer answers
which byte, and merges layers so that the top of the chain reads the same
at every instant.
.
This package has what programs are built with: headers, the static library,
and files for pkg-config and CMake.")

set(CPACK_DEBIAN_LIVE_PACKAGE_NAME qmeld-live)
set(CPACK_DEBIAN_LIVE_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_LIVE_PACKAGE_DEPENDS "qmeld ${same}")
set(CPACK_DEBIAN_LIVE_DESCRIPTION
"fold chains of disk images under virtual machines of libvirt
qmeld merges layers of disk images. This module lets it do so for virtual
machines: under running ones through libvirt's block jobs, and for stopped
ones natively, with libvirt's definitions, snapshots and pools put right.")

include(CPack)
