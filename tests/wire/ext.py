"""The functions of libvfio-user-ext.h, which the C library does not have, as Python sees them."""
import ctypes as c

from libvfu import P, _declare


ACCESS_MESSAGE, ACCESS_MMAP, ACCESS_FILE_IO = range(3)


class credentials(c.Structure):
    _fields_ = [("pid", c.c_int), ("uid", c.c_uint), ("gid", c.c_uint)]


_declare("vfux_create_ctx_replacing", P, c.c_char_p, c.c_int, P, c.c_uint)
_declare("vfux_create_ctx_over_fd", P, c.c_int, c.c_int, P, c.c_uint)
_declare("vfux_get_client_credentials", c.c_int, P, P)
_declare("vfux_get_dma_access", c.c_int, P, c.c_uint64)
_declare("vfux_refuse_dma_region", c.c_int, P, c.c_int)
_declare("vfux_setup_pending_irqs", c.c_int, P)
_declare("vfux_irq_trigger", c.c_int, P, c.c_uint, c.c_uint32)
_declare("vfux_irq_clear_pending", c.c_int, P, c.c_uint, c.c_uint32)
_declare("vfux_read_pba", c.c_ssize_t, P, P, c.c_size_t, c.c_uint64)
_declare("vfux_setup_dma_policy", c.c_int, P, c.c_int)
_declare("vfux_setup_dma_lost_cb", c.c_int, P, P)
_declare("vfux_sg_is_lost", c.c_bool, P, P)
