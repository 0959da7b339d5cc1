# Helpers for the rooms' CMakeLists.

# flexnpu_output_dir(VAR PACKAGE_DIR): where an artefact of PACKAGE_DIR (relative to the repository) is built.
function(flexnpu_output_dir var package_dir)
  if(FLEXNPU_INPLACE)
    set(${var} ${PROJECT_SOURCE_DIR}/${package_dir} PARENT_SCOPE)
  else()
    set(${var} ${PROJECT_BINARY_DIR}/${package_dir} PARENT_SCOPE)
  endif()
endfunction()

# flexnpu_library(TARGET OUTPUT_NAME PACKAGE_DIR): place a shared library, without version suffix, in PACKAGE_DIR.
function(flexnpu_place target output_name package_dir)
  flexnpu_output_dir(dir ${package_dir})
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME ${output_name}
    LIBRARY_OUTPUT_DIRECTORY ${dir}
    BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH ON)
  install(TARGETS ${target} LIBRARY DESTINATION ${package_dir})
  add_dependencies(flexnpu_runtime ${target})
endfunction()

# flexnpu_unity(TARGET): compile several files of TARGET as one. Reading the headers is most of a file's time, so this
# builds in a third of it. Generated files are large enough to stand alone.
option(FLEXNPU_UNITY "compile several files as one" ON)
function(flexnpu_unity target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${FLEXNPU_UNITY} UNITY_BUILD_BATCH_SIZE 8)
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "[.]gen[.]cpp$")
  set_source_files_properties(${sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# flexnpu_unity_by_folder(TARGET): the same, with the files of a folder as one. For rooms whose folders use a helper's
# name each for itself.
function(flexnpu_unity_by_folder target)
  flexnpu_unity(${target})
  set_target_properties(${target} PROPERTIES UNITY_BUILD_MODE GROUP)
  get_target_property(sources ${target} SOURCES)
  foreach(source ${sources})
    get_filename_component(folder ${source} DIRECTORY)
    if(folder AND NOT source MATCHES "[.]gen[.]cpp$")
      set_source_files_properties(${source} PROPERTIES UNITY_GROUP ${folder})
    endif()
  endforeach()
endfunction()

# flexnpu_python_module(TARGET PACKAGE_DIR sources...): a nanobind extension module in PACKAGE_DIR. Not part of
# flexnpu_runtime by itself: benchmarks and tests have modules too.
function(flexnpu_python_module target package_dir)
  if(NOT COMMAND nanobind_add_module)
    execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
                    OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT)
    find_package(nanobind CONFIG REQUIRED)
  endif()
  nanobind_add_module(${target} NB_STATIC ${ARGN})
  # nanobind's own sources are not held to our warnings.
  target_compile_options(nanobind-static PRIVATE -w)
  set_target_properties(nanobind-static PROPERTIES UNITY_BUILD ${FLEXNPU_UNITY} UNITY_BUILD_BATCH_SIZE 0)
  flexnpu_output_dir(dir ${package_dir})
  set_target_properties(${target} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${dir})
  install(TARGETS ${target} LIBRARY DESTINATION ${package_dir})
endfunction()

# flexnpu_test(NAME sources... LIBS libs...): a doctest executable, run by ctest and by tests/test_native.py.
function(flexnpu_test name)
  if(NOT FLEXNPU_TESTS)
    return()
  endif()
  cmake_parse_arguments(T "" "" "LIBS" ${ARGN})
  add_executable(${name} ${T_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ${T_LIBS} flexnpu_doctest Threads::Threads)
  # Tests are compiled for a short build, not for speed.
  target_compile_options(${name} PRIVATE -O1 -g1)
  target_compile_definitions(${name} PRIVATE DOCTEST_CONFIG_SUPER_FAST_ASSERTS)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/unit)
  add_test(NAME ${name} COMMAND ${name})
  # Tests of the data plane, which `make test-sanitized` builds and runs.
  cmake_path(GET CMAKE_CURRENT_SOURCE_DIR FILENAME room)
  if(room MATCHES "^(api|client|daemon|device|gate|wire)$")
    set_tests_properties(${name} PROPERTIES LABELS data-plane)
    add_dependencies(flexnpu_data_plane ${name})
  endif()
endfunction()
