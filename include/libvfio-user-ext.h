/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libvfio-user: what this library offers beyond the C library's interface.
 *
 * This file is generated from the library's source, src/capi: change it there.
 *
 * A device that uses these functions needs this library. Their names start with
 * vfux_, and their symbols have the version LIBVFIO_USER_1, so a program that is
 * linked with them is not started with a library that lacks them.
 *
 * What libvfio-user.h says at its top of results, threads, callbacks and
 * ownership holds here, too. None of the functions changes what the device does
 * for the client unless it is called.
 */
#ifndef LIB_VFIO_USER_EXT_H
#define LIB_VFIO_USER_EXT_H

#include <sys/types.h>

#include "libvfio-user.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The client
 */

/** Who connected, as the kernel saw it at that moment (SO_PEERCRED). */
typedef struct {
	/** The process, by its number in this process' namespace; 0 if it has none there. */
	pid_t pid;
	/** Its effective user. */
	uid_t uid;
	/** Its effective group. */
	gid_t gid;
} vfux_credentials_t;

/**
 * Says who the client is: the process that called connect(), and what user and
 * group it had then. What it does afterwards, even leaving the connection to
 * another process, changes nothing.
 *
 * @vfu_ctx: the context
 * @credentials: filled in
 *
 * May be called from callbacks, too, those included that the loss of the client
 * brings.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   ENOTCONN   no client is attached
 *   EINVAL     credentials is NULL
 */
int vfux_get_client_credentials(vfu_ctx_t *vfu_ctx, vfux_credentials_t *credentials);

/*
 * DMA
 */

/** How the device reaches memory of the client's. */
enum vfux_dma_access {
	/**
	 * By messages: the client gave no descriptor. vfu_sgl_read() and
	 * vfu_sgl_write() ask the client each time; vfu_sgl_get() fails with EFAULT.
	 */
	VFUX_DMA_ACCESS_MESSAGE = 0,
	/** It is mapped: vfu_sgl_get() works. */
	VFUX_DMA_ACCESS_MMAP = 1,
	/**
	 * By pread() and pwrite() on the client's descriptor, as the client asked:
	 * vfu_sgl_read() and vfu_sgl_write() do so; vfu_sgl_get() fails with EFAULT.
	 */
	VFUX_DMA_ACCESS_FILE_IO = 2,
};

/**
 * Says how the device reaches the DMA region around an address.
 *
 * @vfu_ctx: the context
 * @dma_addr: an address of the client's; in the callbacks of
 *            vfu_setup_device_dma(), info->iova.iov_base
 *
 * It is the same for all of a region, and does not change while the region is
 * there.
 *
 * May be called from any thread while the device is not quiesced, and in
 * callbacks, those included that register and unregister the region. It takes
 * no lock unless regions come or go meanwhile.
 *
 * Returns enum vfux_dma_access, or -1 and sets errno:
 *
 *   ENOENT   the address is in no DMA region
 */
int vfux_get_dma_access(vfu_ctx_t *vfu_ctx, vfu_dma_addr_t dma_addr);

/**
 * Refuses the DMA region that the register callback is being told of: once the
 * callback has returned, the region goes, and the client's request fails.
 *
 * @vfu_ctx: the context
 * @err: the errno that the client is told
 *
 * For a device that could not work with the region: one that is not mapped, say,
 * where the device has to have pointers (see vfux_get_dma_access()). Clients
 * take it for an error of the mapping: QEMU does not start, or does not add the
 * memory.
 *
 * Until the callback returns the region can be used, and vfu_addr_to_sgl() finds
 * it, for other threads, too. Afterwards it is as if it had never been: info is
 * no longer good, its entries are stale, pointers into it lead nowhere, and the
 * unregister callback is not called. If this is called more than once, the last
 * err counts; it cannot be taken back.
 *
 * Threads: on the thread that uses the context, and there in the register
 * callback of vfu_setup_device_dma() only.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no register callback of the context is running; err is not from 1
 *            to 4095
 */
int vfux_refuse_dma_region(vfu_ctx_t *vfu_ctx, int err);

/*
 * Interrupts
 */

/**
 * Keeps interrupts that cannot be delivered, until they can.
 *
 * @vfu_ctx: the context
 *
 * Without this, vfu_irq_trigger() fails with ENOENT while the client has taken a
 * vector's eventfd away (VMMs do that to mask a vector, and before and after
 * migration), and does not heed masks. With it, for INTx, MSI and MSI-X:
 *
 * - A trigger of a vector that has no eventfd or is masked succeeds, and is
 *   pending: one bit for each vector, as PCI has it. It is delivered when the
 *   eventfd comes or the last mask goes.
 * - A vector is masked by the client's SET_IRQS, and all of MSI-X by the Function
 *   Mask bit of the capability's Message Control, as far as the library handles
 *   it (not with VFU_CAP_FLAG_CALLBACK). The callback of
 *   vfu_setup_irq_state_callback() is called as ever.
 * - INTx is as the kernel's VFIO has it: an interrupt masks the line, until the
 *   client unmasks it; what is triggered meanwhile is delivered then. The client
 *   is told so (MASKABLE, AUTOMASKED).
 * - While no type has an eventfd, a trigger is for the type that configuration
 *   space enables, MSI-X or MSI, or else for the first of INTx, MSI-X and MSI
 *   with such a vector. vfux_irq_trigger() names the type.
 * - A reset of the device, and the loss of the client, forget what is pending.
 *
 * To be called before vfu_realize_ctx().
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   vfu_realize_ctx() has been called
 */
int vfux_setup_pending_irqs(vfu_ctx_t *vfu_ctx);

/**
 * Triggers an interrupt of a type, ERR and REQ included, which tell the VMM of an
 * error that the device cannot recover from, and ask it to release the device.
 *
 * @vfu_ctx: the context
 * @type: enum vfu_dev_irq_type
 * @subindex: the vector
 *
 * May be called from any thread while the device is not quiesced, and in signal
 * handlers. It takes no lock, and waits no more than vfu_irq_trigger() does.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such type, or it has no such vector; vfu_realize_ctx() has not
 *            been called
 *   ENOENT   the vector has no eventfd, and interrupts of this type are not kept
 *            (ERR and REQ never are)
 *   EAGAIN   the client has not taken very many interrupts of this vector
 *   others   as write() sets it
 */
int vfux_irq_trigger(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type, uint32_t subindex);

/**
 * Forgets an interrupt that is pending: what it told of is no longer so.
 *
 * @vfu_ctx: the context
 * @type: enum vfu_dev_irq_type
 * @subindex: the vector
 *
 * A device with INTx calls this when the driver has cleared the cause, or the
 * interrupt is delivered once more when the client unmasks the line.
 *
 * May be called from any thread while the device is not quiesced, and in signal
 * handlers. It takes no lock and never waits.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such type, or it has no such vector
 */
int vfux_irq_clear_pending(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type, uint32_t subindex);

/**
 * Reads the pending bit array of MSI-X: for the region access callback of the
 * BAR that the capability says it is in.
 *
 * @vfu_ctx: the context
 * @buf: filled in
 * @count: number of bytes
 * @offset: the first byte, from the start of the pending bit array
 *
 * The array has a bit for each vector and is a multiple of 8 bytes long. Clients
 * that keep the MSI-X table to themselves, as QEMU does, still read the array
 * from the device. Without vfux_setup_pending_irqs() it is all zeros.
 *
 * May be called from any thread while the device is not quiesced, and in signal
 * handlers. It takes no lock and never waits.
 *
 * Returns count, or -1 and sets errno:
 *
 *   EINVAL   the bytes are not within the array; buf is NULL
 */
ssize_t vfux_read_pba(vfu_ctx_t *vfu_ctx, char *buf, size_t count, uint64_t offset);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_EXT_H */
