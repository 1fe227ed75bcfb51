"""ctypes' statement of nvlm.h is the header's: functions, structures, places of fields."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy import __version__
from nvlm_deploy.errors import CancelledError, UnsuitableError, UsageError
from nvlm_deploy.runtime.native import abi, library
from nvlm_deploy.runtime.native.images import Images

_SCALARS: dict[str, Any] = {
    "double": ctypes.c_double,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "uint64_t": ctypes.c_uint64,
    "uint8_t": ctypes.c_uint8,
    "char": ctypes.c_char,
}
_HANDLES = ("nvlm_engine", "nvlm_result", "nvlm_cancellation")


def of_c(declared: str) -> Any:
    """The ctypes type of a C type, without `const`."""
    name = declared.replace("const", "").replace(" ", "")
    known = {
        "void": None,
        "void*": ctypes.c_void_p,
        "char*": ctypes.c_char_p,
        "char**": ctypes.POINTER(ctypes.c_char_p),
        "nvlm_status": ctypes.c_int,
        "nvlm_text_callback": abi.TextCallback,
        **_SCALARS,
        **{handle + "*": ctypes.c_void_p for handle in _HANDLES},
        **{handle + "**": ctypes.POINTER(ctypes.c_void_p) for handle in _HANDLES},
    }
    if name in known:
        return known[name]
    pointed = name.removesuffix("*")
    return ctypes.POINTER(abi.STRUCTURES.get(pointed) or _SCALARS[pointed])


@pytest.fixture(scope="module")
def header_file(repository: Path) -> Path:
    return repository / "engines" / "runtime" / "include" / "nvlm" / "nvlm.h"


@pytest.fixture(scope="module")
def header(header_file: Path) -> str:
    """Without comments."""
    return re.sub(r"/\*.*?\*/", "", header_file.read_text(), flags=re.DOTALL)


def type_and_name(declaration: str) -> tuple[str, str]:
    match = re.fullmatch(r"\s*(.*?)(\w+)\s*", declaration, re.DOTALL)
    assert match, declaration
    return match[1].strip(), match[2]


def test_functions(header: str) -> None:
    found = {}
    for result, name, arguments in re.findall(r"NVLM_API ([^;()]*?)\b(nvlm_\w+)\(([^)]*)\);", header):
        types = [] if arguments == "void" else [type_and_name(each)[0] for each in arguments.split(",")]
        found[name] = (of_c(result), [of_c(each) for each in types])
    assert found == abi.FUNCTIONS


def test_structures(header: str) -> None:
    found = dict(re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", header, re.DOTALL))
    assert {name.strip() for name in found.values()} == set(abi.STRUCTURES)
    for body, name in found.items():
        expected = []
        for declaration in body.split(";")[:-1]:
            declared, field = type_and_name(declaration)
            kind = of_c(declared)
            # What is given by its address alone has no type of its own there.
            addresses = (ctypes.POINTER(ctypes.c_uint8),)
            expected.append((field, ctypes.c_void_p if kind in addresses else kind))
        assert expected == abi.STRUCTURES[name]._fields_, name


def test_fields_are_where_the_compiler_puts_them(header_file: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    lines, expected = [], []
    for name, structure in abi.STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            size = f"sizeof((({name}*)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), {size});')
            place = getattr(structure, field)
            expected.append(f"{name}.{field} {place.offset} {place.size}")
    source = tmp_path / "places.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <nvlm/nvlm.h>\nint main(void) {\n"
        + "\n".join(lines)
        + f'\nprintf("%d %d\\n", NVLM_OK == {abi.OK}, NVLM_CANCELLED == {CancelledError.exit_code});'
        + "\nreturn 0; }\n"
    )
    include = str(header_file.parents[1])
    subprocess.run([compiler, "-I", include, str(source), "-o", str(tmp_path / "places")], check=True)
    done = subprocess.run([tmp_path / "places"], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [*expected, "1 1"]


@pytest.fixture
def compiled(tmp_path: Path) -> Any:
    """Makes a library of C code."""

    def compile_library(name: str, code: str) -> Path:
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler here")
        source, built = tmp_path / f"{name}.c", tmp_path / name
        source.write_text(code)
        subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
        return built

    return compile_library


def refused(monkeypatch: pytest.MonkeyPatch, path: Path) -> UnsuitableError:
    monkeypatch.setenv(library.LIBRARY_VARIABLE, str(path))
    with pytest.raises(UnsuitableError) as caught:
        library.load_library()
    assert caught.value.hint is not None
    assert "make native" in caught.value.hint
    return caught.value


def test_libraries_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Any) -> None:
    missing = tmp_path / "none" / "libnvlm.so"
    assert f"{missing} cannot be used as the native runtime" in str(refused(monkeypatch, missing))
    other = compiled("other.so", "int other(void) { return 0; }")
    assert "nvlm_version" in str(refused(monkeypatch, other))
    names = [name for name in abi.FUNCTIONS if name != "nvlm_version"]
    functions = "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
    old = compiled("old.so", 'const char* nvlm_version(void) { return "0.0.1"; }\n' + functions)
    text = str(refused(monkeypatch, old))
    assert text == f"{old} is libnvlm 0.0.1, and this is nvlm-deploy {__version__}"


def test_no_library_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(library.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(UnsuitableError, match=r"the native runtime is not here: there is no .*libnvlm\.so"):
        library.load_library()


def test_onnx_runtime_is_the_wheels_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.ONNXRUNTIME_VARIABLE, raising=False)
    found = library.onnxruntime_library()
    assert found is not None
    assert b"onnxruntime/capi/libonnxruntime.so" in found
    monkeypatch.setenv(library.ONNXRUNTIME_VARIABLE, "/another.so")
    assert library.onnxruntime_library() is None


def test_paths_with_a_zero_byte() -> None:
    with pytest.raises(UsageError, match="zero byte"):
        library.path_bytes("a\0b")


def test_what_is_decoded_natively(golden_image: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (5, 3), (1, 2, 3))
    native = Images([golden_image, golden_image.read_bytes(), image])
    assert len(native) == 3
    first, second, third = native.array
    assert first.path == bytes(golden_image)
    assert ctypes.string_at(second.file, second.file_size) == golden_image.read_bytes()
    assert (third.width, third.height) == image.size
    assert ctypes.string_at(third.pixels, 45) == image.tobytes()


@pytest.fixture
def golden_image(repository: Path) -> Path:
    return next((repository / "examples" / "nvlm-d-tiny" / "samples").glob("*.png"))
