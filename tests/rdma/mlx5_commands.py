"""DevX by ctypes: commands to an mlx5 device, built field by field, through libmlx5's mlx5dv_devx_* functions.

Bit offsets: rdma-core providers/mlx5/mlx5_ifc.h (mlx5_ifc_*_bits) and tests/mlx5_prm_structs.py.
"""

import ctypes
import ctypes.util
import errno
import os

QUERY_HCA_CAP, CREATE_MKEY, CREATE_CQ, QUERY_CQ, CREATE_QP = 0x100, 0x200, 0x400, 0x402, 0x500
RST2INIT, INIT2RTR, RTR2RTS, RTS2RTS, TO_ERR, QUERY_QP = 0x502, 0x503, 0x504, 0x505, 0x507, 0x50B
ALLOC_PD, QUERY_LAG = 0x800, 0x842
NUMBER, STATUS, SYNDROME = (0x48, 24), (0, 8), (0x20, 32)
CQC, QPC, PATH, MKC, CAPABILITY = 0x80, 0xC0, 0xC0 + 0xC0, 0x80, 0x80
DEVX, NON_CACHED = 1, 1  # MLX5DV_CONTEXT_FLAGS_DEVX, MLX5DV_UAR_ALLOC_TYPE_NC


class ContextAttr(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint32), ("comp_mask", ctypes.c_uint64))


class Uar(ctypes.Structure):
    _fields_ = (
        ("reg_addr", ctypes.c_void_p), ("base_addr", ctypes.c_void_p), ("page_id", ctypes.c_uint32),
        ("mmap_off", ctypes.c_int64), ("comp_mask", ctypes.c_uint64),
    )  # fmt: skip


class Command:
    """A command's bytes: `Command(CREATE_QP, 272, {(bit, width): value})`."""

    def __init__(self, opcode, nbytes, fields=()):
        self.raw = bytearray(nbytes)
        self.put(0, 16, opcode)
        for (at, width), value in dict(fields).items():
            self.put(at, width, value)

    def put(self, at, width, value):
        bits = int.from_bytes(self.raw, "big")
        shift = len(self.raw) * 8 - at - width
        mask = ((1 << width) - 1) << shift
        self.raw[:] = (bits & ~mask | int(value) << shift & mask).to_bytes(len(self.raw), "big")


def field(raw, at, width):
    return int.from_bytes(raw, "big") >> len(raw) * 8 - at - width & (1 << width) - 1


class Refused(OSError):
    """The device's status and syndrome, or None where the kernel has not passed the command on."""

    def __init__(self, number, raw):
        super().__init__(number, os.strerror(number))
        self.status = field(raw, *STATUS) if number == errno.EREMOTEIO else None


class Device:
    """One mlx5 device, opened for DevX; everything that it has made is destroyed in the opposite order by close()."""

    def __init__(self, name):
        self.verbs = ctypes.CDLL(ctypes.util.find_library("ibverbs"), use_errno=True)
        self.mlx5 = ctypes.CDLL(ctypes.util.find_library("mlx5"), use_errno=True)
        for function in (
            self.verbs.ibv_get_device_list, self.mlx5.mlx5dv_open_device, self.mlx5.mlx5dv_devx_umem_reg,
            self.mlx5.mlx5dv_devx_alloc_uar, self.mlx5.mlx5dv_devx_obj_create,
        ):  # fmt: skip
            function.restype = ctypes.c_void_p
        self.verbs.ibv_get_device_name.restype = ctypes.c_char_p
        listed = ctypes.cast(self.verbs.ibv_get_device_list(None), ctypes.POINTER(ctypes.c_void_p))
        found = [d for d in self._until_null(listed) if self._name(d) == name]
        attributes = ContextAttr(DEVX, 0)
        self.context = self.mlx5.mlx5dv_open_device(ctypes.c_void_p(found[0]), ctypes.byref(attributes))
        if not self.context:
            raise OSError(ctypes.get_errno(), "mlx5dv_open_device with DevX")
        self._undo = [(self.verbs.ibv_close_device, self.context)]

    @staticmethod
    def _until_null(listed):
        index = 0
        while listed[index]:
            yield listed[index]
            index += 1

    def _name(self, device):
        return self.verbs.ibv_get_device_name(ctypes.c_void_p(device)).decode()

    def close(self):
        while self._undo:
            function, pointer = self._undo.pop()
            function(ctypes.c_void_p(pointer))

    def general(self, command, out_bytes):
        out = ctypes.create_string_buffer(out_bytes)
        given = bytes(command.raw)
        done = self.mlx5.mlx5dv_devx_general_cmd(ctypes.c_void_p(self.context), given, len(given), out, out_bytes)
        if done:
            raise Refused(done, out.raw)
        return out.raw

    def umem(self, memory, nbytes):
        made = self.mlx5.mlx5dv_devx_umem_reg(
            ctypes.c_void_p(self.context), ctypes.c_void_p(memory), ctypes.c_size_t(nbytes), 7
        )
        if not made:
            raise OSError(ctypes.get_errno(), "mlx5dv_devx_umem_reg")
        self._undo.append((self.mlx5.mlx5dv_devx_umem_dereg, made))
        return ctypes.c_uint32.from_address(made).value

    def uar(self):
        made = self.mlx5.mlx5dv_devx_alloc_uar(ctypes.c_void_p(self.context), NON_CACHED)
        if not made:
            raise OSError(ctypes.get_errno(), "mlx5dv_devx_alloc_uar")
        self._undo.append((self.mlx5.mlx5dv_devx_free_uar, made))
        return Uar.from_address(made)

    def create(self, command):
        """(object, its number)"""
        out = ctypes.create_string_buffer(16)
        given = bytes(command.raw)
        made = self.mlx5.mlx5dv_devx_obj_create(ctypes.c_void_p(self.context), given, len(given), out, 16)
        if not made:
            raise Refused(ctypes.get_errno(), out.raw)
        self._undo.append((self.mlx5.mlx5dv_devx_obj_destroy, made))
        return made, field(out.raw, *NUMBER)

    def modify(self, made, command):
        out = ctypes.create_string_buffer(16)
        given = bytes(command.raw)
        done = self.mlx5.mlx5dv_devx_obj_modify(ctypes.c_void_p(made), given, len(given), out, 16)
        if done:
            raise Refused(done, out.raw)

    def query(self, made, command, out_bytes):
        out = ctypes.create_string_buffer(out_bytes)
        given = bytes(command.raw)
        done = self.mlx5.mlx5dv_devx_obj_query(ctypes.c_void_p(made), given, len(given), out, out_bytes)
        if done:
            raise Refused(done, out.raw)
        return out.raw
