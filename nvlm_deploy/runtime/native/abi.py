"""`engines/runtime/include/nvlm/nvlm.h` for ctypes: its structures, and the types of its functions.

Tests hold every field's place and every function's arguments against the header.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint64,
    c_void_p,
)
from typing import Any, ClassVar

OK = 0
CANCELLED = 130

# Takes a piece of an answer, not followed by a zero byte, and its length; see nvlm_text_callback.
TextCallback = CFUNCTYPE(c_int, c_void_p, c_size_t, c_void_p)


class _Sized(ctypes.Structure):
    """A structure that starts with its own size; zero is the default of every other field."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class EngineOptions(_Sized):
    """nvlm_engine_options"""

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("threads", c_int32),
        ("mapped", c_int32),
        ("skip_digests", c_int32),
        ("require_verified", c_int32),
        ("image_cache_bytes", c_int64),
        ("device", c_char_p),
        ("library", c_char_p),
    ]


class EngineInfo(_Sized):
    """nvlm_engine_info"""

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("tile_size", c_int32),
        ("max_tiles", c_int32),
        ("visual_tokens_per_tile", c_int32),
        ("context", c_int32),
        ("vocab_size", c_int32),
        ("variant", c_char),
    ]


class Image(_Sized):
    """nvlm_image"""

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("path", c_char_p),
        ("file", c_void_p),
        ("file_size", c_size_t),
        ("pixels", c_void_p),
        ("width", c_int64),
        ("height", c_int64),
        ("stride", c_size_t),
    ]


class Request(_Sized):
    """nvlm_request"""

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("prompt", c_char_p),
        ("messages", c_char_p),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
        ("max_new_tokens", c_size_t),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("temperature", c_double),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("seed", c_uint64),
        ("top_logits", c_size_t),
        ("cancellation", c_void_p),
    ]


class ResultInfo(_Sized):
    """nvlm_result_info"""

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("finish_reason", c_int32),
        ("prompt_tokens", c_size_t),
        ("output_tokens", c_size_t),
        ("first_token_ms", c_double),
        ("per_token_ms", c_double),
        ("total_ms", c_double),
    ]


class CacheInfo(_Sized):
    """nvlm_cache_info"""

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("hits", c_uint64),
        ("misses", c_uint64),
        ("entries", c_size_t),
        ("bytes", c_size_t),
    ]


STRUCTURES: dict[str, type[_Sized]] = {
    "nvlm_engine_options": EngineOptions,
    "nvlm_engine_info": EngineInfo,
    "nvlm_image": Image,
    "nvlm_request": Request,
    "nvlm_result_info": ResultInfo,
    "nvlm_cache_info": CacheInfo,
}

_length = POINTER(c_size_t)
_grid_side = POINTER(c_int32)

# Name: what it returns, and its arguments. Handles are void pointers; statuses are ints.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "nvlm_version": (c_char_p, []),
    "nvlm_last_error": (c_char_p, []),
    "nvlm_last_hint": (c_char_p, []),
    "nvlm_engine_open": (c_int, [c_char_p, POINTER(EngineOptions), POINTER(c_void_p)]),
    "nvlm_engine_close": (None, [c_void_p]),
    "nvlm_engine_get_info": (c_int, [c_void_p, POINTER(EngineInfo)]),
    "nvlm_generate": (c_int, [c_void_p, POINTER(Request), POINTER(c_void_p)]),
    "nvlm_generate_stream": (
        c_int,
        [c_void_p, POINTER(Request), TextCallback, c_void_p, POINTER(c_void_p)],
    ),
    "nvlm_cancellation_new": (c_int, [POINTER(c_void_p)]),
    "nvlm_cancellation_reset": (None, [c_void_p]),
    "nvlm_cancellation_free": (None, [c_void_p]),
    "nvlm_cancel": (None, [c_void_p]),
    "nvlm_result_get_info": (c_int, [c_void_p, POINTER(ResultInfo)]),
    "nvlm_result_text": (c_int, [c_void_p, c_char_p, c_size_t, _length]),
    "nvlm_result_tokens": (c_int, [c_void_p, c_int32, POINTER(c_int64), c_size_t, _length]),
    "nvlm_result_timing": (c_int, [c_void_p, c_char_p, POINTER(c_double)]),
    "nvlm_result_json": (c_int, [c_void_p, c_char_p, c_size_t, _length]),
    "nvlm_result_free": (None, [c_void_p]),
    "nvlm_tile": (
        c_int,
        [c_void_p, POINTER(Image), POINTER(c_uint8), c_size_t, _length, _grid_side, _grid_side],
    ),
    "nvlm_tokenize": (c_int, [c_void_p, c_char_p, POINTER(c_int64), c_size_t, _length]),
    "nvlm_detokenize": (c_int, [c_void_p, POINTER(c_int64), c_size_t, c_char_p, c_size_t, _length]),
    "nvlm_cache_prefetch": (c_int, [c_void_p, POINTER(Image), c_void_p]),
    "nvlm_cache_get_info": (c_int, [c_void_p, POINTER(CacheInfo)]),
    "nvlm_cache_clear": (c_int, [c_void_p]),
}


def declare(library: ctypes.CDLL) -> None:
    """Give the library's functions their types.

    Raises:
        AttributeError: a function is missing, which is named.
    """
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
