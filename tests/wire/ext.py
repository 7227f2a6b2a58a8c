"""The functions of libvfio-user-ext.h, which the C library does not have, as Python sees them."""
import ctypes as c

from libvfu import P, _declare


ACCESS_MESSAGE, ACCESS_MMAP, ACCESS_FILE_IO = range(3)


class credentials(c.Structure):
    _fields_ = [("pid", c.c_int), ("uid", c.c_uint), ("gid", c.c_uint)]


_declare("vfux_create_ctx_replacing", P, c.c_char_p, c.c_int, P, c.c_uint)
_declare("vfux_create_ctx_over_fd", P, c.c_int, c.c_int, P, c.c_uint)
_declare("vfux_get_client_credentials", c.c_int, P, P)
_declare("vfux_get_dma_access", c.c_int, P, c.c_size_t)
_declare("vfux_refuse_dma_region", c.c_int, P, c.c_int)
_declare("vfux_setup_pending_irqs", c.c_int, P)
_declare("vfux_irq_trigger", c.c_int, P, c.c_uint, c.c_uint32)
_declare("vfux_irq_clear_pending", c.c_int, P, c.c_uint, c.c_uint32)
_declare("vfux_read_pba", c.c_ssize_t, P, P, c.c_size_t, c.c_uint64)
_declare("vfux_setup_dma_policy", c.c_int, P, c.c_int)
_declare("vfux_guard_dma", c.c_int)
_declare("vfux_setup_dma_lost_cb", c.c_int, P, P)
_declare("vfux_sg_is_lost", c.c_bool, P, P)
_declare("vfux_add_hand_over_fd", c.c_int, P, c.c_char_p, c.c_int)
_declare("vfux_create_ctx_taking_over", P, c.c_char_p, c.c_int, c.c_int, P, c.c_uint)
_declare("vfux_create_ctx_taking_over_fd", P, c.c_int, c.c_int, c.c_int, P, c.c_uint)
_declare("vfux_get_hand_over_fd", c.c_int, P)
_declare("vfux_get_old_config_space", c.c_int, P, P, c.c_size_t, c.c_size_t)
_declare("vfux_get_old_fd", c.c_int, P, c.c_char_p)
_declare("vfux_get_old_ioeventfd", c.c_int, P, c.c_uint32, c.c_uint32, P)
_declare("vfux_get_old_irq_count", c.c_int, P, c.c_uint)
_declare("vfux_get_old_region", c.c_int, P, c.c_uint32, P)
_declare("vfux_hand_over", c.c_int, P, c.c_int)
_declare("vfux_put_state", c.c_int, P, c.c_char_p, c.c_size_t)
_declare("vfux_setup_hand_over", c.c_int, P, c.c_char_p)
_declare("vfux_setup_hand_over_callbacks", c.c_int, P, P)
_declare("vfux_setup_hand_over_fd", c.c_int, P, c.c_int)
_declare("vfux_take_over", c.c_int, P, c.c_int)


class old_region(c.Structure):
    _fields_ = [("size", c.c_uint64), ("offset", c.c_uint64), ("flags", c.c_uint32), ("fd", c.c_int)]


class old_ioeventfd(c.Structure):
    _fields_ = [("gpa_offset", c.c_uint64), ("datamatch", c.c_uint64), ("size", c.c_uint32), ("flags", c.c_uint32),
                ("fd", c.c_int), ("reserved", c.c_uint32)]


SAVE_CB = c.CFUNCTYPE(c.c_int, P, use_errno=True)
LOAD_CB = c.CFUNCTYPE(c.c_int, P, P, c.c_size_t, c.c_uint32, use_errno=True)
HANDED_OVER_CB = c.CFUNCTYPE(None, P, c.c_bool, use_errno=True)


class hand_over_callbacks(c.Structure):
    _fields_ = [("version", c.c_int), ("save_state", SAVE_CB), ("load_state", LOAD_CB),
                ("handed_over", HANDED_OVER_CB)]
