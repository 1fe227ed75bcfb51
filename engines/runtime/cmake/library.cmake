# libnvlm: all parts in one shared library that exports nvlm.h, and how it is installed.

include(CMakePackageConfigHelpers)

add_library(nvlm SHARED)
add_library(nvlm::nvlm ALIAS nvlm)
# Empty: a shared library needs one source of its own.
target_sources(nvlm PRIVATE ${CMAKE_CURRENT_LIST_DIR}/../src/error.hpp)
set_target_properties(nvlm PROPERTIES LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION}
                                      SOVERSION ${PROJECT_VERSION_MAJOR} INSTALL_RPATH "$ORIGIN")
target_link_libraries(nvlm PRIVATE ${nvlm_parts})
if(NVLM_STATIC)
  target_link_options(nvlm PRIVATE -static-libstdc++ -static-libgcc -Wl,--gc-sections)
endif()
target_include_directories(nvlm INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                                          $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(nvlm INTERFACE c_std_11 cxx_std_17)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(nvlm PRIVATE -Wl,--version-script=${CMAKE_CURRENT_LIST_DIR}/nvlm.map)
  if(NOT NVLM_SANITIZE)
    # The runtime of a sanitizer may come with the program alone.
    target_link_options(nvlm PRIVATE -Wl,--no-undefined)
  endif()
  set_target_properties(nvlm PROPERTIES LINK_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/nvlm.map)
endif()

install(TARGETS nvlm EXPORT nvlmTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/nvlm DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/nvlm)
install(EXPORT nvlmTargets NAMESPACE nvlm:: DESTINATION ${config_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/nvlmConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/nvlmConfig.cmake INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/nvlmConfigVersion.cmake
                                 COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/nvlmConfig.cmake ${PROJECT_BINARY_DIR}/nvlmConfigVersion.cmake
        DESTINATION ${config_dir})

configure_file(${CMAKE_CURRENT_LIST_DIR}/nvlm.pc.in ${PROJECT_BINARY_DIR}/nvlm.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/nvlm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
