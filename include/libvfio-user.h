/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libvfio-user: serve an emulated PCI device over the vfio-user protocol.
 *
 * This file is generated from the library's source, src/capi: change it there.
 *
 * A device is a context. The program makes one, describes the device to it,
 * waits for a client (a virtual machine monitor, say) and then serves it:
 *
 *	ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, device, VFU_DEV_TYPE_PCI);
 *	vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0);
 *	vfu_pci_set_id(ctx, vendor, device_id, 0, 0);
 *	vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, size, access, flags, ...);
 *	vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1);
 *	vfu_realize_ctx(ctx);
 *	vfu_attach_ctx(ctx);
 *	vfu_run_ctx(ctx);
 *	vfu_destroy_ctx(ctx);
 *
 * All of the device's code runs in callbacks, on the thread that called the
 * library. The library starts no threads and handles no signals (but see
 * vfux_guard_dma() in libvfio-user-ext.h).
 *
 * What holds for all functions:
 *
 * Results. A function that fails says so by its result, -1, NULL or 0, and sets
 * errno. Where errno matters after success, too, the function says it. NULL for
 * a context, or for a pointer that is needed, is EINVAL; a function without a
 * result ignores it. A bug of the library is EIO: the context is broken then,
 * everything but vfu_destroy_ctx() fails with EIO, and a message is logged.
 *
 * Threads. A context is used by one thread at a time, except that
 * vfu_addr_to_sgl(), vfu_sg_is_mappable(), vfu_sgl_get(), vfu_sgl_put(),
 * vfu_sgl_mark_dirty(), vfu_irq_trigger() and vfu_log() may run on other threads
 * meanwhile, as long as the device is not quiesced. Different contexts are
 * independent of each other.
 *
 * These functions are safe even where a device does not keep still: beside a map,
 * an unmap or a change of interrupts, each does what it would have done before or
 * after, and fails for an entry whose region has gone. Nothing can protect the
 * memory itself: what vfu_sgl_get() returned must not be touched any more when the
 * unregister callback of its region has returned.
 *
 * Callbacks. A callback may call the functions that its description names, on
 * the same context. It must not call vfu_attach_ctx(), vfu_run_ctx(),
 * vfu_device_quiesced() or vfu_destroy_ctx(), nor leave by longjmp() or by a C++
 * exception. Threads are not cancelled in it.
 *
 * Cancellation. A thread may be cancelled where it waits for the client, as the
 * functions that wait say. If its cancellation type is asynchronous it may be in no
 * others: they are vfu_attach_ctx(), vfu_sgl_read(), vfu_sgl_write(), and
 * vfu_run_ctx() without LIBVFIO_USER_FLAG_ATTACH_NB.
 *
 * Ownership. What is passed in is copied or only looked at during the call,
 * except for pvt, for callbacks and for descriptors, which the library keeps but
 * never frees or closes. What is passed out belongs to the library.
 */
#ifndef LIB_VFIO_USER_H
#define LIB_VFIO_USER_H

#include <stdint.h>
#include <sys/uio.h>
#include <unistd.h>
#include <syslog.h>
#ifdef __GLIBC__
#include <sys/queue.h>
#endif

#include "pci_caps/dsn.h"
#include "pci_caps/msi.h"
#include "pci_caps/msix.h"
#include "pci_caps/pm.h"
#include "pci_caps/px.h"
#include "pci_defs.h"
#include "vfio-user.h"

/* An offset in a region: loff_t, by the name that libc has for it in this language. */
#if defined(__GLIBC__) && defined(__USE_MISC)
#define VFU_LOFF_T loff_t
#elif defined(__GLIBC__)
#define VFU_LOFF_T __loff_t
#else
#define VFU_LOFF_T off_t
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Major version of this interface. */
#define LIB_VFIO_USER_MAJOR 0
/** Minor version of this interface. */
#define LIB_VFIO_USER_MINOR 2

/*
 * The device and its life
 */

/** A device and its connection, from vfu_create_ctx() to vfu_destroy_ctx(). */
typedef struct vfu_ctx vfu_ctx_t;

/** How a client reaches the device: argument of vfu_create_ctx(). */
typedef enum {
	/** A UNIX stream socket. */
	VFU_TRANS_SOCK = 0,
	/** Not supported. */
	VFU_TRANS_PIPE = 1,
	/** Number of transports. */
	VFU_TRANS_MAX = 2,
} vfu_trans_t;

/** What kind of device it is: argument of vfu_create_ctx(). */
typedef enum {
	/** A PCI device. */
	VFU_DEV_TYPE_PCI = 0,
} vfu_dev_type_t;

/** Flag of vfu_create_ctx(): vfu_attach_ctx() and vfu_run_ctx() never wait. */
#define LIBVFIO_USER_FLAG_ATTACH_NB (1 << 0)

/**
 * Makes a context: a device that listens at a socket.
 *
 * @trans: VFU_TRANS_SOCK
 * @path: where to make the UNIX socket, at most 107 bytes; copied. Nothing may
 *        be there: an old socket is not removed. An empty path makes a socket
 *        without a place in the file system.
 * @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
 * @pvt: for the device's use, see vfu_get_private(); may be NULL
 * @dev_type: VFU_DEV_TYPE_PCI
 *
 * The socket is made and listens at once; a client can connect, and waits for
 * vfu_attach_ctx(). At first there are no regions, no DMA, no migration, one
 * ERR and one REQ interrupt, and no log.
 *
 * There is nowhere to log to yet: errno alone says why it fails. So it is in all
 * functions where there is no context (vfu_ctx is NULL).
 *
 * Threads: any, at any time.
 *
 * Returns the context, which vfu_destroy_ctx() releases, or NULL and sets
 * errno:
 *
 *   EINVAL         an unknown flag; path is NULL
 *   ENOTSUP        another transport, another type of device
 *   ENAMETOOLONG   path is too long
 *   EADDRINUSE     something is there at path
 *   others         as socket(), bind() and listen() set it
 */
vfu_ctx_t *vfu_create_ctx(vfu_trans_t trans,
			  const char *path,
			  int flags,
			  void *pvt,
			  vfu_dev_type_t dev_type);

/**
 * Returns the pvt that was given to vfu_create_ctx().
 *
 * @vfu_ctx: the context; for NULL, NULL is returned and errno is EINVAL
 *
 * Threads: any, at any time.
 */
void *vfu_get_private(vfu_ctx_t *vfu_ctx);

/** Why the device is reset. */
enum vfu_reset_type {
	/** The client asked for it, or the device failed to quiesce. */
	VFU_RESET_DEVICE = 0,
	/** The client has gone, or the context is being destroyed. */
	VFU_RESET_LOST_CONN = 1,
	/** Function level reset, by the PCI Express capability. */
	VFU_RESET_PCI_FLR = 2,
};
typedef enum vfu_reset_type vfu_reset_type_t;

/**
 * Resets the device.
 *
 * @vfu_ctx: the context
 * @type: why
 *
 * Returns 0, or -1 and sets errno, which is sent to the client; every positive
 * number counts as 0, every negative one as -1; the result for
 * VFU_RESET_LOST_CONN is not looked at. The device is quiesced. The library
 * resets nothing itself: configuration space, DMA regions and interrupts stay.
 * After a VFU_RESET_DEVICE that succeeded, the migration state is RUNNING, but
 * in PRE_COPY it stays that: guests reset their devices also while they are
 * being migrated, and the client goes on with the stream. So the session goes
 * on, too: what was read before the reset and what is read after it have to be,
 * together, the state after it.
 *
 * The function may call what a region access callback may call; for
 * VFU_RESET_LOST_CONN the DMA regions have gone already.
 */
typedef int (vfu_reset_cb_t)(vfu_ctx_t *vfu_ctx, vfu_reset_type_t type);

/**
 * Chooses the function that resets the device.
 *
 * @vfu_ctx: the context
 * @reset: the function; NULL: a reset does nothing and succeeds
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0.
 */
int vfu_setup_device_reset_cb(vfu_ctx_t *vfu_ctx, vfu_reset_cb_t *reset);

/**
 * Asks the device to quiesce: to stop all that relies on what is about to
 * change, DMA above all, on every thread.
 *
 * @vfu_ctx: the context
 *
 * Called before a DMA region is added or removed, before the device is reset,
 * before its migration state is set, before dirty page logging starts or
 * stops, and after the client has gone. Until the API call that runs the
 * operation returns, the device must not use DMA memory from other threads.
 *
 * Returns 0: the device is quiesced; or -1 and sets errno (every positive number
 * counts as 0, every negative one as -1):
 *
 *   EBUSY    The device needs time, and goes on working meanwhile. It calls
 *            vfu_device_quiesced() when it is done; until then vfu_run_ctx()
 *            fails with EBUSY. Must not be used for anything else.
 *   others   The operation is refused and the client gets this errno. If the
 *            client has gone, it is logged and disregarded.
 *
 * The function must not call vfu_device_quiesced() itself. It may call what a
 * region access callback may call.
 */
typedef int (vfu_device_quiesce_cb_t)(vfu_ctx_t *vfu_ctx);

/**
 * Chooses the function that quiesces the device.
 *
 * @vfu_ctx: the context
 * @quiesce_cb: the function; NULL: the device is never asked, and counts as
 *              quiesced whenever a callback runs
 *
 * Threads: on the thread that uses the context, see the top of this file.
 */
void vfu_setup_device_quiesce_cb(vfu_ctx_t *vfu_ctx, vfu_device_quiesce_cb_t *quiesce_cb);

/**
 * Finishes the set-up of a device: to be called once, before vfu_attach_ctx().
 *
 * @vfu_ctx: the context
 *
 * Makes the configuration space if vfu_pci_init() has not, and fills in what
 * follows from the set-up: the types of the BARs, the interrupt pin, the
 * presence of capabilities. Regions, capabilities and callbacks can still be
 * set up afterwards. Calling it again does nothing.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   ENOMEM   no memory
 */
int vfu_realize_ctx(vfu_ctx_t *vfu_ctx);

/**
 * Takes on a client: accepts its connection and agrees on the protocol version.
 *
 * @vfu_ctx: the context
 *
 * Waits for a client and its first message; with LIBVFIO_USER_FLAG_ATTACH_NB
 * it does what can be done at once and fails with EAGAIN: call it again when
 * the descriptor of vfu_get_poll_fd() is readable. A thread that waits here may
 * be cancelled (pthread_cancel()), and the context be destroyed thereafter. A
 * signal ends the wait if its handler was set without SA_RESTART, by sigaction();
 * after a handler that was set by signal(), the thread goes on waiting.
 *
 * Threads: on the thread that uses the context. The functions that any thread may
 * call may run beside it, see the top of this file.
 *
 * Returns 0, or -1 and sets errno; the context can attach again after all of
 * these:
 *
 *   EAGAIN       no client yet, or its message is not complete yet
 *   EINTR        a signal arrived; what the client has sent is kept
 *   EINVAL       there is a client already; or the client's version message
 *                cannot be agreed to: it has been told so, and is disconnected
 *   ENOMSG       the client left before its message
 *   ECONNRESET   the client left in the middle of its message
 *   others       as accept(), recvmsg() and sendmsg() set it
 */
int vfu_attach_ctx(vfu_ctx_t *vfu_ctx);

/**
 * Returns a descriptor that is readable when vfu_attach_ctx() (before a client
 * is attached) or vfu_run_ctx() has something to do.
 *
 * @vfu_ctx: the context
 *
 * The descriptor is for poll(), select() and epoll only; it is the library's
 * and must not be closed. Ask again after vfu_attach_ctx() succeeded and after
 * vfu_run_ctx() failed with ENOTCONN: it may be another one then.
 *
 * Called in a callback it returns the client's connected socket instead, also in
 * the callbacks that the loss of the client brings: for getsockopt(SO_PEERCRED)
 * and the like, not to read, write or close.
 *
 * Returns the descriptor, or -1 and sets errno:
 *
 *   EMFILE, ENFILE, ENOMEM   it cannot be made
 *
 * Threads: on the thread that uses the context, see the top of this file.
 */
int vfu_get_poll_fd(vfu_ctx_t *vfu_ctx);

/**
 * Serves the client: reads its requests, executes and answers them.
 *
 * @vfu_ctx: the context
 *
 * With LIBVFIO_USER_FLAG_ATTACH_NB it executes the requests that are there and
 * returns without waiting. It stops after 256 of them, and when 10 ms have gone by
 * since it began; the descriptor of vfu_get_poll_fd() is readable then. Without the flag it goes on serving
 * until one of the errors below. All callbacks run in here, on the calling
 * thread. A thread that waits here, for a request or for a client that does not
 * read its replies, may be cancelled (pthread_cancel()), and the context be
 * destroyed thereafter; a callback is never cut short by a cancellation. A signal
 * ends the wait, too; the wait for a request only if the handler was set without
 * SA_RESTART, as sigaction() does and signal() does not. What was received or is
 * unsent then is kept, and the next call goes on with it. (Of a reply that is
 * longer than a socket takes at once, a cancellation may leave unknown what the
 * client got, as with a glibc older than 2.41: the next call finds the connection
 * lost then.)
 *
 * Callbacks have to return: one that calls pthread_exit(), throws, or leaves by
 * longjmp() ends the process, or leaves the context unusable.
 *
 * A request that is refused or fails is answered with an error, and is no
 * failure of this function. errno is then what the client was sent for the
 * last one that failed in this call.
 *
 * Threads: on the thread that uses the context. The functions that any thread may
 * call may run beside it, see the top of this file.
 *
 * Returns the number of requests executed, 0 if there were none, or -1 and sets
 * errno:
 *
 *   EINVAL     vfu_realize_ctx() has not been called
 *   ENOTCONN   there is no client: none has attached yet, or it has gone; its
 *              DMA regions and interrupts are released, and the device has been
 *              reset (VFU_RESET_LOST_CONN). vfu_attach_ctx() takes on another
 *   EBUSY      the device is asked to quiesce and has not said yet that it did,
 *              see vfu_device_quiesced()
 *   EINTR      a signal arrived while waiting
 *   others     as recvmsg() sets it
 */
int vfu_run_ctx(vfu_ctx_t *vfu_ctx);

/**
 * Tells that the device has quiesced, after its quiesce callback failed with
 * EBUSY.
 *
 * @vfu_ctx: the context
 * @quiesce_errno: 0: the device is quiesced; else an errno: it failed to
 *
 * With 0, what waited for it is done in here, with its callbacks and its reply
 * to the client, and the device runs again when the function returns. With an
 * errno, the client is sent that errno and the device is reset
 * (VFU_RESET_DEVICE). If the client has gone meanwhile, its resources are
 * released in either case.
 *
 * Threads: on the thread that uses the context. The functions that any thread may
 * call may run beside it, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   nothing waits for the device, or it has no quiesce callback; so,
 *            too, inside the quiesce callback
 *   EBUSY    the client went while it was answered, and the device has been
 *            asked to quiesce for that
 *   others   the client could not be answered
 */
int vfu_device_quiesced(vfu_ctx_t *vfu_ctx, int quiesce_errno);

/**
 * Destroys a context.
 *
 * @vfu_ctx: the context; NULL is ignored
 *
 * The DMA regions are removed, with their unregister callbacks; the reset
 * callback runs with VFU_RESET_LOST_CONN; the quiesce callback does not. Then
 * the client is disconnected, the socket's path removed, and all that the
 * library owns released. Descriptors that the device passed in, of regions and
 * ioeventfds, stay open.
 *
 * In a child of fork() the callbacks run, descriptors are closed and memory is
 * freed; the client, who is the parent's, notices nothing, and the path stays.
 *
 * No other function may run on the context meanwhile, on any thread, but those
 * that the callbacks call.
 */
void vfu_destroy_ctx(vfu_ctx_t *vfu_ctx);

/*
 * Regions
 */

/** Regions of a PCI device, the same as VFIO_PCI_*_REGION_INDEX. */
enum {
	VFU_PCI_DEV_BAR0_REGION_IDX = 0,
	VFU_PCI_DEV_BAR1_REGION_IDX = 1,
	VFU_PCI_DEV_BAR2_REGION_IDX = 2,
	VFU_PCI_DEV_BAR3_REGION_IDX = 3,
	VFU_PCI_DEV_BAR4_REGION_IDX = 4,
	VFU_PCI_DEV_BAR5_REGION_IDX = 5,
	/** Expansion ROM. */
	VFU_PCI_DEV_ROM_REGION_IDX = 6,
	/** Configuration space. */
	VFU_PCI_DEV_CFG_REGION_IDX = 7,
	VFU_PCI_DEV_VGA_REGION_IDX = 8,
	VFU_PCI_DEV_NUM_REGIONS = 9,
};

/** Regions of a device that is no PCI device. There is no such device today. */
enum {
	VFU_GENERIC_DEV_MIGR_REGION_IDX = 0,
	VFU_GENERIC_DEV_NUM_REGIONS = 1,
};

/** The client can read the region. */
#define VFU_REGION_FLAG_READ (1 << 0)
/** The client can write the region. */
#define VFU_REGION_FLAG_WRITE (1 << 1)
/** Both. */
#define VFU_REGION_FLAG_RW (VFU_REGION_FLAG_READ | VFU_REGION_FLAG_WRITE)
/** A memory BAR; without this flag, a BAR of I/O ports. */
#define VFU_REGION_FLAG_MEM (1 << 2)
/**
 * Every access to configuration space goes to the callback, the header and the
 * capabilities included, which the library otherwise handles itself.
 */
#define VFU_REGION_FLAG_ALWAYS_CB (1 << 3)
/** A 64-bit memory BAR: an even one, which takes the next BAR for its upper half. */
#define VFU_REGION_FLAG_64_BITS (1 << 4)
/** A prefetchable memory BAR. */
#define VFU_REGION_FLAG_PREFETCH (1 << 5)
/** All flags of a region. */
#define VFU_REGION_FLAG_MASK \
	(VFU_REGION_FLAG_READ | \
	 VFU_REGION_FLAG_WRITE | \
	 VFU_REGION_FLAG_MEM | \
	 VFU_REGION_FLAG_ALWAYS_CB | \
	 VFU_REGION_FLAG_64_BITS | \
	 VFU_REGION_FLAG_PREFETCH)

/**
 * Reads or writes a region of the device.
 *
 * @vfu_ctx: the context
 * @buf: where to put what is read, or what is to be written; the library's,
 *       valid until the function returns, aligned to 8 bytes. For a read it
 *       holds leftovers of this client's earlier traffic: fill all of it
 * @count: number of bytes, at least 1 and at most 1 MiB
 * @offset: where in the region; offset + count is within the region's size
 * @is_write: true for a write, false for a read
 *
 * Returns the number of bytes read or written, which may be less than count,
 * or -1 and sets errno, which is sent to the client. 0 and every other value
 * is answered EINVAL. For an access to configuration space that returned
 * fewer bytes than count, the function is called again for the rest.
 *
 * The client waits, often with all of its virtual CPUs: be quick. The function
 * may call vfu_log(), vfu_irq_trigger(), vfu_create_ioeventfd(), the
 * vfu_pci_find_*() functions, vfu_addr_to_sgl() and all vfu_sgl_*() functions.
 * Beware of vfu_sgl_read() and vfu_sgl_write() by messages here: a client such
 * as QEMU serves them only after it has got the reply to its own request, so
 * they wait out its timeout (5 seconds) and break the connection. Do such DMA
 * after the reply, that is, after vfu_run_ctx() has returned. Memory that
 * vfu_sgl_get() made accessible can be used here without fear.
 */
typedef ssize_t (vfu_region_access_cb_t)(vfu_ctx_t *vfu_ctx,
					  char *buf,
					  size_t count,
					  VFU_LOFF_T offset,
					  bool is_write);

/**
 * Sets up a region of the device. A region that is not set up has size 0 and
 * cannot be accessed.
 *
 * @vfu_ctx: the context
 * @region_idx: which region, VFU_PCI_DEV_*_REGION_IDX
 * @size: in bytes. A BAR's is a power of two, at least 16 (memory) or 4 (I/O);
 *        0 clears the region. That of the configuration space is ignored after
 *        vfu_pci_init().
 * @region_access: reads and writes the region; may be NULL, then accesses fail
 *                 with EINVAL. For the configuration space: accesses to what
 *                 the library does not handle itself
 * @flags: VFU_REGION_FLAG_*; READ or WRITE at least, both for the configuration
 *         space. What the client is not allowed to do is answered EPERM.
 * @mmap_areas: parts of the region that the client may map, each an offset in
 *              the region (iov_base) and a length in bytes (iov_len); copied.
 *              NULL: all of the region, if there is a descriptor
 * @nr_mmap_areas: number of mmap_areas, 0 for NULL
 * @fd: descriptor of a file that holds the region, which the client maps; -1:
 *      none. Borrowed: the library neither duplicates nor closes it, so it has
 *      to stay open as long as the context lives.
 * @offset: where in the file the region starts, in bytes
 *
 * Setting up a region again replaces all of the above. After vfu_realize_ctx() the
 * BAR's register, or that of the ROM, follows: it keeps the address that a driver
 * gave it as far as that is one for the new region. A client that has asked for
 * the region already does not learn of it.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno; nothing has changed then:
 *
 *   EINVAL   no such region; an unknown flag, or neither READ nor WRITE;
 *            VFU_REGION_FLAG_ALWAYS_CB without a callback; areas without a
 *            descriptor, without a number, or beyond the region; a size that a
 *            BAR cannot have; a 64-bit BAR that is odd or whose upper half is in
 *            use; flags that the configuration space cannot have
 *   ENOMEM   no memory
 */
int vfu_setup_region(vfu_ctx_t *vfu_ctx,
		     int region_idx,
		     size_t size,
		     vfu_region_access_cb_t *region_access,
		     int flags,
		     struct iovec *mmap_areas,
		     uint32_t nr_mmap_areas,
		     int fd,
		     uint64_t offset);

/*
 * Interrupts
 */

/** Types of interrupts, the same as VFIO_PCI_*_IRQ_INDEX. */
enum vfu_dev_irq_type {
	/** Legacy interrupt line. */
	VFU_DEV_INTX_IRQ = 0,
	VFU_DEV_MSI_IRQ = 1,
	VFU_DEV_MSIX_IRQ = 2,
	/** The device failed for good. */
	VFU_DEV_ERR_IRQ = 3,
	/** The device is asked back from the client. */
	VFU_DEV_REQ_IRQ = 4,
	VFU_DEV_NUM_IRQS = 5,
};

/**
 * Says how many vectors of a type of interrupt the device has. At first: one
 * ERR, one REQ, none of the others.
 *
 * @vfu_ctx: the context
 * @type: enum vfu_dev_irq_type
 * @count: number of vectors
 *
 * To be called before vfu_realize_ctx(). Afterwards it still works: it sets the
 * interrupt pin register if it is INTx whose number changes, and vectors that are
 * no longer there lose their eventfds. But a client that has asked already does
 * not learn of it.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such type
 *   ENOMEM   no memory
 */
int vfu_setup_device_nr_irqs(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type, uint32_t count);

/**
 * The client masked or unmasked interrupts.
 *
 * @vfu_ctx: the context
 * @start: first vector
 * @count: number of vectors
 * @mask: true: masked, false: unmasked
 *
 * The library does not hold masked interrupts back: that is up to the device.
 * The function may call what a region access callback may call.
 */
typedef void (vfu_dev_irq_state_cb_t)(vfu_ctx_t *vfu_ctx,
				       uint32_t start,
				       uint32_t count,
				       bool mask);

/**
 * Chooses the function that is told when the client masks or unmasks
 * interrupts of a type.
 *
 * Clients mask and unmask INTx although its interrupt information says only that
 * it takes an eventfd: QEMU unmasks it at the end of each interrupt.
 *
 * @vfu_ctx: the context
 * @type: enum vfu_dev_irq_type
 * @cb: the function; NULL: nobody is told
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such type
 */
int vfu_setup_irq_state_callback(vfu_ctx_t *vfu_ctx,
				 enum vfu_dev_irq_type type,
				 vfu_dev_irq_state_cb_t *cb);

/**
 * Triggers an interrupt, of the type that the client has enabled: MSI-X, MSI or
 * INTx. ERR and REQ cannot be triggered.
 *
 * @vfu_ctx: the context
 * @subindex: the vector
 *
 * May be called from any thread while the device is not quiesced, and in signal
 * handlers. It takes no lock and does not wait, except for a client that breaks
 * the rules of eventfds on purpose: one that clears O_NONBLOCK of an eventfd that
 * it has handed over, and fills its counter, holds triggers of that vector until
 * it reads the counter, or a signal comes.
 *
 * Masks are the device's business: what the client masked is told by the callback
 * of vfu_setup_irq_state_callback(), and an interrupt that is triggered all the
 * same is delivered.
 *
 * As a signal handler must not log, the next vfu_run_ctx() does it where this fails
 * with EINVAL. The other errors are the client's doing, and are not logged.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no type of interrupt has such a vector; vfu_realize_ctx() has not
 *            been called
 *   ENOENT   the client has not enabled the vector
 *   EAGAIN   the client has not taken very many interrupts of this vector
 *   others   as write() sets it
 */
int vfu_irq_trigger(vfu_ctx_t *vfu_ctx, uint32_t subindex);

/*
 * DMA
 *
 * The client offers memory as DMA regions, and takes them away again. To use it,
 * the device translates addresses with vfu_addr_to_sgl() and then either gets
 * the memory itself with vfu_sgl_get(), if the client shares it as a file to map
 * (vfu_sg_is_mappable()), or copies with vfu_sgl_read() and vfu_sgl_write().
 */

/** Suggested max_regions of vfu_setup_device_dma(). */
#define LIBVFIO_USER_MAX_DMA_REGIONS 1000000

/** A DMA region: memory of the client that the device may use. */
struct vfu_dma_info {
	/** Its IO virtual addresses: the first one, and the length in bytes. */
	struct iovec iova;
	/**
	 * Where its first byte is mapped into this process; NULL: it is not mapped,
	 * and can be reached with vfu_sgl_read() and vfu_sgl_write() only.
	 */
	void *vaddr;
	/**
	 * All that is mapped for it, in whole pages; NULL and 0 if it is not mapped.
	 */
	struct iovec mapping;
	/** Page size of the memory, in bytes: the system's, or that of huge pages. */
	size_t page_size;
	/** What the device may do: PROT_READ, PROT_WRITE, both or neither. */
	uint32_t prot;
};
typedef struct vfu_dma_info vfu_dma_info_t;

/**
 * The client added a DMA region.
 *
 * @vfu_ctx: the context
 * @info: the region; the library's, valid until the unregister callback for it
 *        returns
 *
 * The device is quiesced. The region can be translated and used already. The
 * function may call what a region access callback may call.
 */
typedef void (vfu_dma_register_cb_t)(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info);

/**
 * A DMA region goes: the client removed it, or has gone itself.
 *
 * @vfu_ctx: the context
 * @info: the region, at the same address as in the register callback
 *
 * The device is quiesced. The device must drop every pointer into the region:
 * the region can be translated and used until the function returns, and is
 * unmapped then. The function may call what a region access callback may call.
 *
 * One request of the client may remove several regions, in ascending order.
 */
typedef void (vfu_dma_unregister_cb_t)(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info);

/**
 * Says that the device uses DMA. Without this call the library disregards what
 * memory the client offers.
 *
 * @vfu_ctx: the context
 * @max_regions: how many DMA regions the client may have at a time;
 *               LIBVFIO_USER_MAX_DMA_REGIONS is a good value
 * @dma_register: told of each region that the client adds; may be NULL
 * @dma_unregister: told of each region that goes; may be NULL, but a device that
 *                  uses vfu_sgl_get() needs it: its pointers into a region are
 *                  good until then (it is warned once)
 *
 * Calling it again replaces all three.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EEXIST   set up already, and there are regions
 *   EINVAL   the client that is attached has offered memory before, which has been
 *            disregarded
 *   ENOMEM   no memory
 */
int vfu_setup_device_dma(vfu_ctx_t *vfu_ctx,
			 size_t max_regions,
			 vfu_dma_register_cb_t *dma_register,
			 vfu_dma_unregister_cb_t *dma_unregister);

/**
 * An IO virtual address: an address as the client (the guest) knows it. Not to
 * be dereferenced; vfu_addr_to_sgl() and vfu_sgl_get() turn it into memory.
 */
typedef void *vfu_dma_addr_t;

/**
 * A part of a DMA region, filled in by vfu_addr_to_sgl(). What is inside is the
 * library's business: allocate dma_sg_size() bytes for each entry, aligned as
 * malloc() does. Entries may be copied.
 */
typedef struct dma_sg dma_sg_t;

/**
 * Returns the size of a dma_sg_t in bytes.
 *
 * Threads: any, at any time.
 */
size_t dma_sg_size(void);

/**
 * Translates a range of the client's memory: finds the parts of DMA regions
 * that it consists of. This is the first step of every DMA.
 *
 * @vfu_ctx: the context
 * @dma_addr: start of the range
 * @len: its length in bytes
 * @sgl: where to put the entries, one for each region in the range, in order;
 *       the caller's
 * @max_nr_sgs: how many entries sgl has room for
 * @prot: what the device is going to do: PROT_READ, PROT_WRITE or both, of
 *        <sys/mman.h>
 *
 * May be called from any thread while the device is not quiesced. An entry is
 * good until the unregister callback of its region has returned; used later, it
 * makes the functions that are given it fail.
 *
 * ENOENT and EACCES are answers, which a guest brings about at will: they are not
 * logged.
 *
 * Returns the number of entries filled in, 0 if len is 0. If n entries are
 * needed and there is room for less, the first max_nr_sgs of them are filled
 * in, and the function returns -n - 1 and sets errno to 0. Otherwise it returns
 * -1 and sets errno:
 *
 *   ENOENT   part of the range is in no DMA region
 *   EACCES   the client doesn't allow what prot says
 *   EINVAL   vfu_setup_device_dma() has not been called; sgl is NULL
 */
int vfu_addr_to_sgl(vfu_ctx_t *vfu_ctx,
		    vfu_dma_addr_t dma_addr,
		    size_t len,
		    dma_sg_t *sgl,
		    size_t max_nr_sgs,
		    int prot);

/**
 * Says whether vfu_sgl_get() can make an entry accessible as memory.
 *
 * @vfu_ctx: the context
 * @sg: the entry
 *
 * Regions that the client shares as a file to map are; the others can be
 * reached with vfu_sgl_read() and vfu_sgl_write() only. May be called from any
 * thread while the device is not quiesced.
 *
 * Returns true or false; false, too, for an entry whose region has gone.
 */
bool vfu_sg_is_mappable(vfu_ctx_t *vfu_ctx, dma_sg_t *sg);

/**
 * Makes entries accessible as memory.
 *
 * @vfu_ctx: the context
 * @sgl: entries that vfu_addr_to_sgl() filled in
 * @iov: filled in with the memory of each entry; the caller's
 * @cnt: number of entries
 * @flags: 0
 *
 * The memory is the client's own. It may be used until vfu_sgl_put(), which has
 * to follow, and at most until the unregister callback of its region returns.
 * The client, and with it the guest, can change it at any time: copy what is to be
 * checked, then check the copy. And it can take it away: an access to a page that
 * its file has lost (truncated, or a hole that a full file system has no room for)
 * ends the process by SIGBUS, and all contexts with it. Who serves clients that are
 * not trusted so far calls vfux_guard_dma() or vfux_setup_dma_policy(), see
 * libvfio-user-ext.h, or uses vfu_sgl_read() and vfu_sgl_write() by messages.
 * These with VFU_SGL_DIRECT_ACCESS touch the same memory.
 *
 * May be called from any thread while the device is not quiesced.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   an entry that vfu_addr_to_sgl() has not filled in, or whose region
 *            has gone; flags is not 0; vfu_setup_device_dma() was not called
 *   EFAULT   an entry that is not mappable, see vfu_sg_is_mappable(): an answer, which
 *            is not logged
 */
int vfu_sgl_get(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, struct iovec *iov, size_t cnt, int flags);

/**
 * Ends the use of memory from vfu_sgl_get(), and marks the pages of entries
 * that were translated for writing as dirty if the client logs that. (Memory
 * without a descriptor is never dirty here: the client itself writes there.)
 *
 * @vfu_ctx: the context
 * @sgl: the entries
 * @iov: what vfu_sgl_get() filled in
 * @cnt: number of entries
 *
 * May be called from any thread while the device is not quiesced. Entries whose
 * region has gone are ignored.
 */
void vfu_sgl_put(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, struct iovec *iov, size_t cnt);

/**
 * Marks the pages of entries that were translated for writing as dirty, if the
 * client logs that, and leaves the memory in use: for a device that keeps
 * writing to memory from vfu_sgl_get(). To be called after writing.
 *
 * @vfu_ctx: the context
 * @sgl: the entries
 * @cnt: number of entries
 *
 * May be called from any thread while the device is not quiesced. Entries whose
 * region has gone are ignored.
 */
void vfu_sgl_mark_dirty(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, size_t cnt);

/**
 * Flag of vfu_sgl_read() and vfu_sgl_write(): use the client's file directly
 * where the region has one, instead of messages.
 */
#define VFU_SGL_DIRECT_ACCESS (1 << 0)

/**
 * Reads memory of the client.
 *
 * @vfu_ctx: the context
 * @sg: the entry to read, all of it
 * @sg_cnt: 1
 * @data: where to put the bytes; the caller's
 * @flags: VFU_SGL_DIRECT_ACCESS: if the client shares the region as a file,
 *         take the bytes from there; 0: always ask the client by messages
 *
 * Messages wait for the client's answers, without a timeout and with
 * LIBVFIO_USER_FLAG_ATTACH_NB, too. Any signal that is caught ends the wait,
 * inside of callbacks, too; what the client still answers then is dropped, also
 * where the thread is cancelled (pthread_cancel()) outside of callbacks. Do not
 * use messages inside a region access callback: see there.
 *
 * With a second socket (twin_socket) a message moves as much as the client allows,
 * 1 MiB at the most; over one socket 128 KiB at the most. There, a longer entry
 * is moved by messages of 64 KiB, two at a time, if the client allows so much.
 *
 * Threads: on the thread that uses the context. The functions that any thread may
 * call may run beside it, see the top of this file.
 *
 * Returns 0, or -1 and sets errno; data may have been written to then:
 *
 *   EINVAL     an unknown flag; an entry that is not filled in or whose region
 *              has gone; a reply that makes no sense
 *   ENOTSUP    sg_cnt is not 1
 *   EPERM      the client does not allow it
 *   ENOTCONN   no client, or it went
 *   EINTR      a signal arrived while waiting for the client
 *   EIO        the client's file cannot be read, or is too short, or its memory
 *              has gone, see vfux_guard_dma()
 *   EPROTO     a reply to something else
 *   others     what the client answered
 */
int vfu_sgl_read(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags);

/**
 * Writes memory of the client.
 *
 * @vfu_ctx: the context
 * @sg: the entry to write, all of it; translated with PROT_WRITE
 * @sg_cnt: 1
 * @data: the bytes; the caller's
 * @flags: as for vfu_sgl_read()
 *
 * As vfu_sgl_read(). Pages written directly are marked as dirty if the client
 * logs that; for those written by messages that is up to the client.
 *
 * Threads: on the thread that uses the context. The functions that any thread may
 * call may run beside it, see the top of this file.
 *
 * Returns 0, or -1 and sets errno as vfu_sgl_read(); part of the bytes may have
 * been written then.
 */
int vfu_sgl_write(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags);

/*
 * PCI
 */

/** Kinds of PCI devices, which differ in the size of configuration space. */
typedef enum {
	/** 256 bytes. */
	VFU_PCI_TYPE_CONVENTIONAL = 0,
	/** PCI-X mode 1: 256 bytes. */
	VFU_PCI_TYPE_PCI_X_1 = 1,
	/** PCI-X mode 2: 4096 bytes. */
	VFU_PCI_TYPE_PCI_X_2 = 2,
	/** PCI Express: 4096 bytes. */
	VFU_PCI_TYPE_EXPRESS = 3,
} vfu_pci_type_t;

/**
 * Makes the configuration space of a PCI device, all zero.
 *
 * @vfu_ctx: the context
 * @pci_type: decides the size: 256 or 4096 bytes
 * @hdr_type: 0 (PCI_HEADER_TYPE_NORMAL)
 * @revision: not used; write the revision into the configuration space
 *
 * To be called before vfu_realize_ctx().
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such type, another type of header
 *   EEXIST   there is a configuration space already
 *   ENOMEM   no memory
 */
int vfu_pci_init(vfu_ctx_t *vfu_ctx, vfu_pci_type_t pci_type, int hdr_type, int revision);

/**
 * Sets the identification of the device. Ignored before vfu_pci_init().
 *
 * @vfu_ctx: the context
 * @vid: vendor
 * @did: device
 * @ssvid: subsystem vendor
 * @ssid: subsystem
 *
 * Threads: on the thread that uses the context, see the top of this file.
 */
void vfu_pci_set_id(vfu_ctx_t *vfu_ctx,
		    uint16_t vid,
		    uint16_t did,
		    uint16_t ssvid,
		    uint16_t ssid);

/**
 * Sets the class code of the device. Ignored before vfu_pci_init().
 *
 * @vfu_ctx: the context
 * @base: base class
 * @sub: sub-class
 * @pi: programming interface
 *
 * Threads: on the thread that uses the context, see the top of this file.
 */
void vfu_pci_set_class(vfu_ctx_t *vfu_ctx, uint8_t base, uint8_t sub, uint8_t pi);

/**
 * Returns the configuration space itself, not a copy: what the client reads and
 * writes. The device may read and write it at any time on the thread that runs
 * the context. NULL before vfu_pci_init() or vfu_realize_ctx() has made it.
 *
 * @vfu_ctx: the context
 *
 * The memory is the library's and goes with the context.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 */
vfu_pci_config_space_t *vfu_pci_get_config_space(vfu_ctx_t *vfu_ctx);

/** An extended capability, PCI_EXT_CAP_ID_*, at offset 0x100 or above. */
#define VFU_CAP_FLAG_EXTENDED (1 << 0)
/**
 * Accesses to the capability go to the callback of the configuration space
 * region, with the offset in configuration space.
 */
#define VFU_CAP_FLAG_CALLBACK (1 << 1)
/** The client cannot write the capability. */
#define VFU_CAP_FLAG_READONLY (1 << 2)

/**
 * Adds a capability to the configuration space.
 *
 * @vfu_ctx: the context
 * @pos: where to put it, a multiple of 4: from 0x40 to 0xff, an extended one
 *       from 0x100 on, where the first must be; 0: where there is room
 * @flags: VFU_CAP_FLAG_*
 * @data: the capability, from its header on; copied. Its size is that of the
 *        structure in <pci_caps/...>, or for a vendor-specific one what its
 *        size field says. The pointer to the next capability is set by the
 *        library.
 *
 * These are known: power management, MSI, MSI-X, PCI Express and
 * vendor-specific; extended: device serial number and vendor-specific. Writes of
 * the client to them do what the PCI specifications say, to vendor-specific ones
 * they change the bytes.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns the offset of the capability, or -1 and sets errno:
 *
 *   EINVAL    an unknown flag; VFU_CAP_FLAG_CALLBACK, but the configuration
 *             space region has no callback; VFU_CAP_FLAG_EXTENDED, but the
 *             configuration space has 256 bytes; a position that is wrong or
 *             taken; a vendor-specific capability that is smaller than its
 *             header; data is NULL
 *   ENOTSUP   an unknown capability
 *   ENOSPC    no room; there are 128 capabilities of this kind already
 */
ssize_t vfu_pci_add_capability(vfu_ctx_t *vfu_ctx, size_t pos, int flags, void *data);

/**
 * Finds the first capability of a kind.
 *
 * @vfu_ctx: the context
 * @extended: look among the extended ones
 * @cap_id: PCI_CAP_ID_* or PCI_EXT_CAP_ID_*
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns its offset, or 0 and sets errno:
 *
 *   ENOENT   there is none
 *   EINVAL   there is no configuration space
 */
size_t vfu_pci_find_capability(vfu_ctx_t *vfu_ctx, bool extended, int cap_id);

/**
 * Finds the next capability of a kind.
 *
 * @vfu_ctx: the context
 * @extended: look among the extended ones
 * @pos: offset of the capability to start behind; 0: from the first on
 * @cap_id: PCI_CAP_ID_* or PCI_EXT_CAP_ID_*
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns its offset, or 0 and sets errno:
 *
 *   ENOENT   there is none
 *   EINVAL   pos is outside of the configuration space, or there is none
 */
size_t vfu_pci_find_next_capability(vfu_ctx_t *vfu_ctx, bool extended, size_t pos, int cap_id);

/*
 * Migration
 *
 * The client moves the device through the states of vfu_migr_state_t and takes
 * its state, as bytes that only the device understands, from one process to
 * another.
 */

/**
 * State of the device during migration: argument of the transition callback.
 *
 * These are not the numbers of the protocol (enum vfio_user_device_mig_state).
 */
typedef enum {
	/** The device is stopped: it changes neither its state nor guest memory. */
	VFU_MIGR_STATE_STOP = 0,
	/** The device runs. Every device starts here. */
	VFU_MIGR_STATE_RUNNING = 1,
	/** The device is stopped and its state can be read. */
	VFU_MIGR_STATE_STOP_AND_COPY = 2,
	/** The device runs and its state can be read. */
	VFU_MIGR_STATE_PRE_COPY = 3,
	/** The device is stopped and takes the state of another device. */
	VFU_MIGR_STATE_RESUME = 4,
} vfu_migr_state_t;

/** Value of vfu_migration_callbacks_t.version. */
#define VFU_MIGR_CALLBACKS_VERS 2

/** How a device takes part in live migration. */
typedef struct {
	/** VFU_MIGR_CALLBACKS_VERS. */
	int version;
	/**
	 * Brings the device into a state. The library calls this once for each
	 * step of the path from the present state to the one that the client
	 * asked for; the device is quiesced.
	 *
	 * Returns 0, or -1 and sets errno, which is sent to the client. The state
	 * is then that of the last step that succeeded. ENOTRECOVERABLE says that
	 * the device cannot get back into any valid state: its migration state
	 * becomes ERROR, which only a reset of the device ends. Any other value
	 * counts as a failure with EINVAL.
	 */
	int (*transition)(vfu_ctx_t *vfu_ctx, vfu_migr_state_t state);
	/**
	 * Puts the next part of the device's state, at most count bytes, into buf,
	 * in PRE_COPY and STOP_AND_COPY. buf is the library's, valid until the
	 * function returns.
	 *
	 * Returns the number of bytes, 0 if there is no more for now, or -1 and
	 * sets errno, which is sent to the client. More than count is answered
	 * EINVAL.
	 */
	ssize_t (*read_data)(vfu_ctx_t *vfu_ctx, void *buf, uint64_t count);
	/**
	 * Takes the next part of the device's state, count bytes at buf, in
	 * RESUME. buf is the library's, valid until the function returns.
	 *
	 * Returns count, or -1 and sets errno, which is sent to the client. Any
	 * other value is answered EINVAL.
	 */
	ssize_t (*write_data)(vfu_ctx_t *vfu_ctx, void *buf, uint64_t count);
} vfu_migration_callbacks_t;

/**
 * Says that the device can be migrated. Without this call the client is told
 * that it cannot.
 *
 * @vfu_ctx: the context
 * @callbacks: what the device does for it, all of them; copied
 *
 * The migration state becomes RUNNING. Calling it again replaces the callbacks.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   another version than VFU_MIGR_CALLBACKS_VERS; a callback is NULL
 *   ENOMEM   no memory
 */
int vfu_setup_device_migration_callbacks(vfu_ctx_t *vfu_ctx,
					 const vfu_migration_callbacks_t *callbacks);

/*
 * Logging
 */

/**
 * Takes a log message.
 *
 * @vfu_ctx: the context that the message is about
 * @level: how important it is: LOG_ERR to LOG_DEBUG of <syslog.h>
 * @msg: the text: UTF-8, at most 8191 bytes, NUL-terminated, without a newline
 *       at the end; the library's, valid until the function returns
 *
 * Runs on the thread that called the library, in the middle of that call: it
 * may be a thread that translates addresses or triggers interrupts. errno is
 * put back afterwards. The only functions of this library that it should call
 * are vfu_get_private() and vfu_pci_get_config_space().
 */
typedef void (vfu_log_fn_t)(vfu_ctx_t *vfu_ctx, int level, const char *msg);

/**
 * Chooses where log messages go. At first they go nowhere.
 *
 * @vfu_ctx: the context
 * @log: takes the messages; NULL: there are none
 * @level: the least important messages to pass on: LOG_EMERG (0) to LOG_DEBUG
 *         (7) of <syslog.h>
 *
 * The texts of messages are no interface. A call or a request that is refused is
 * one line at LOG_ERR, with what was asked for and the rule that was broken; a set-up
 * that contradicts itself, and an unmap that finds nothing, are warned of; the loss
 * of a client is one line at LOG_INFO; each request is logged at LOG_DEBUG. Nothing
 * is formatted for a level that is off.
 *
 * No refusals, and not logged, are EAGAIN, EBUSY, EINTR and ENOTCONN in a program
 * that calls again later, and what a function answers that is asked whether there
 * is something (vfu_addr_to_sgl(), vfu_pci_find_capability()). Functions that any
 * thread may call log each rule that they find broken once in the life of a context,
 * because it may be a guest that makes a device break it.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such level
 */
int vfu_setup_log(vfu_ctx_t *vfu_ctx, vfu_log_fn_t *log, int level);

/**
 * Logs a message of the device with those of the library.
 *
 * @vfu_ctx: the context
 * @level: LOG_EMERG (0) to LOG_DEBUG (7) of <syslog.h>
 * @fmt: format as for printf(), %m included, for a text of at most 8191 bytes:
 *       a longer one is cut, and what is not UTF-8 is replaced; NULL is ignored
 *
 * Leaves errno alone. May be called from any thread.
 */
void vfu_log(vfu_ctx_t *vfu_ctx, int level, const char *fmt, ...);

/*
 * ioeventfds
 */

/**
 * Offers the client an eventfd for writes to a part of a region: a client on
 * KVM has the kernel signal it, without a message.
 *
 * @vfu_ctx: the context
 * @region_idx: the region, VFU_PCI_DEV_*_REGION_IDX; set up already
 * @fd: the eventfd; -1: none, the part is only described. Borrowed: the library
 *      neither duplicates nor closes it, so it has to stay open as long as the
 *      context lives.
 * @gpa_offset: where the part starts in the region
 * @size: of the write, in bytes; 0: any
 * @flags: as in struct kvm_ioeventfd of <linux/kvm.h>
 * @datamatch: value whose write signals, if flags ask for that
 * @shadow_fd: -1: shadow memory is not supported
 * @shadow_offset: not used
 *
 * It stays until the context is destroyed; while the region is set up so that the
 * part is not inside, the client is not told of it.
 *
 * Threads: on the thread that uses the context, see the top of this file.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such region, or not set up; the part is not inside the region;
 *            shadow_fd is not -1
 *   ENOMEM   no memory
 */
int vfu_create_ioeventfd(vfu_ctx_t *vfu_ctx,
			 uint32_t region_idx,
			 int fd,
			 size_t gpa_offset,
			 uint32_t size,
			 uint32_t flags,
			 uint64_t datamatch,
			 int shadow_fd,
			 size_t shadow_offset);

/*
 * Callers of an older interface
 *
 * vfu_setup_device_dma() once had no max_regions, and vfu_sgl_read() and
 * vfu_sgl_write() had no flags. Calls with these arguments still compile, and
 * mean LIBVFIO_USER_MAX_DMA_REGIONS and 0. Macros count the arguments: a
 * call with one less goes on with the missing one put in, any other call goes on
 * as it is, for the compiler to judge. The names alone are the functions.
 * Define LIBVFIO_USER_NO_COMPAT before including this header to do without.
 */
#ifndef LIBVFIO_USER_NO_COMPAT

#define vfu_setup_device_dma(...) \
	VFU_COMPAT_CALL(VFU_COMPAT_DMA_, VFU_COMPAT_COUNT(__VA_ARGS__))(vfu_setup_device_dma, __VA_ARGS__)
#define vfu_sgl_read(...) \
	VFU_COMPAT_CALL(VFU_COMPAT_SGL_, VFU_COMPAT_COUNT(__VA_ARGS__))(vfu_sgl_read, __VA_ARGS__)
#define vfu_sgl_write(...) \
	VFU_COMPAT_CALL(VFU_COMPAT_SGL_, VFU_COMPAT_COUNT(__VA_ARGS__))(vfu_sgl_write, __VA_ARGS__)

/* By the number of arguments; 0 stands for all that are neither 3 nor 4. */
#define VFU_COMPAT_DMA_3(function, ctx, dma_register, dma_unregister) \
	function(ctx, LIBVFIO_USER_MAX_DMA_REGIONS, dma_register, dma_unregister)
#define VFU_COMPAT_DMA_4(function, ...) function(__VA_ARGS__)
#define VFU_COMPAT_DMA_0(function, ...) function(__VA_ARGS__)

#define VFU_COMPAT_SGL_3(function, ...) function(__VA_ARGS__)
#define VFU_COMPAT_SGL_4(function, ctx, sg, sg_cnt, data) function(ctx, sg, sg_cnt, data, 0)
#define VFU_COMPAT_SGL_0(function, ...) function(__VA_ARGS__)

#define VFU_COMPAT_CALL(prefix, count) VFU_COMPAT_PASTE(prefix, count)
#define VFU_COMPAT_PASTE(prefix, count) prefix##count

/* Counts up to 32, the commas of C++ templates included. */
#define VFU_COMPAT_COUNT(...) \
	VFU_COMPAT_33RD(__VA_ARGS__, \
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
		4, 3, 0, 0, 0)
#define VFU_COMPAT_33RD( \
	a1, a2, a3, a4, a5, a6, a7, a8, \
	a9, a10, a11, a12, a13, a14, a15, a16, \
	a17, a18, a19, a20, a21, a22, a23, a24, \
	a25, a26, a27, a28, a29, a30, a31, a32, \
	count, ...) count

#endif /* LIBVFIO_USER_NO_COMPAT */

#undef VFU_LOFF_T

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_H */
