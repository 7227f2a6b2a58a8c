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
 * The socket
 */

/**
 * Makes a context as vfu_create_ctx() does, but in the place of a server that is no
 * more.
 *
 * @path: where to make the UNIX socket, at most 102 bytes; copied
 * @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
 * @pvt: for the device's use, see vfu_get_private(); may be NULL
 * @dev_type: VFU_DEV_TYPE_PCI
 *
 * A server that was killed leaves its socket behind. If that is what is at path, and
 * no process has the socket any more, it is replaced, in one step: clients find the
 * old one or the new one. Anything else is left alone. A server that is there is not
 * disturbed by being looked for.
 *
 * While this runs there are path.lock, which keeps two servers from replacing the
 * same one, and perhaps path.new. If the process is killed meanwhile they stay, and
 * do no harm.
 *
 * Threads: any, at any time.
 *
 * Returns the context, which vfu_destroy_ctx() releases, or NULL and sets errno:
 *
 *   EINVAL         an unknown flag; path is NULL
 *   ENOTSUP        another type of device
 *   ENAMETOOLONG   path is too long
 *   EADDRINUSE     something else is at path; another process is about to
 *                  replace what is there
 *   EACCES         the process may not connect to what is there, or not make files
 *                  beside it
 *   others         as socket(), bind(), listen(), connect(), open() and rename() set it
 */
vfu_ctx_t *vfux_create_ctx_replacing(const char *path,
				     int flags,
				     void *pvt,
				     vfu_dev_type_t dev_type);

/**
 * Makes a context over a socket that the process was given.
 *
 * @fd: a UNIX stream socket that listens, or one that is connected to a client; the
 *      context's from then on if this succeeds
 * @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
 * @pvt: for the device's use, see vfu_get_private(); may be NULL
 * @dev_type: VFU_DEV_TYPE_PCI
 *
 * For programs that somebody else opens the socket for: systemd (socket activation:
 * the first is descriptor 3), a supervisor that lets them do nothing themselves, or
 * a VMM that passes one end of a socketpair().
 *
 * A socket that listens serves one client after the other, as ever. It belongs to
 * who made it, too, so vfu_destroy_ctx() closes it, and removes no path. Whether
 * accepting waits (O_NONBLOCK) is set as flags say, for all who have the socket.
 *
 * With a connected socket, vfu_attach_ctx() takes on its client, who begins with
 * the version message as any other. There is never another one: once it has gone,
 * vfu_attach_ctx() fails with ENOTCONN.
 *
 * The descriptor will not be passed on to programs that are executed (FD_CLOEXEC).
 *
 * Threads: any, at any time.
 *
 * Returns the context, which vfu_destroy_ctx() releases, or NULL and sets errno; the
 * descriptor is the caller's then, as before:
 *
 *   EINVAL     an unknown flag
 *   ENOTSUP    another type of device; a socket of another kind
 *   EBADF      fd is no open descriptor
 *   ENOTSOCK   it is no socket
 *   ENOTCONN   it neither listens nor is it connected
 */
vfu_ctx_t *vfux_create_ctx_over_fd(int fd, int flags, void *pvt, vfu_dev_type_t dev_type);

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
 * handlers. It takes no lock, and waits no more than vfu_irq_trigger() does. What is
 * logged of it is as there.
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
 * handlers. It takes no lock and never waits. What is logged of it is as for
 * vfu_irq_trigger().
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
 * handlers. It takes no lock and never waits. What is logged of it is as for
 * vfu_irq_trigger().
 *
 * Returns count, or -1 and sets errno:
 *
 *   EINVAL   the bytes are not within the array; buf is NULL
 */
ssize_t vfux_read_pba(vfu_ctx_t *vfu_ctx, char *buf, size_t count, uint64_t offset);

/*
 * Memory that the client takes away
 */

/** Policy of vfux_setup_dma_policy(): any memory, as without the call. */
#define VFUX_DMA_POLICY_ANY 0
/** Policy of vfux_setup_dma_policy(): only memory that the client cannot take away. */
#define VFUX_DMA_POLICY_LASTING 1

/**
 * Chooses which memory of the client is mapped.
 *
 * @vfu_ctx: the context
 * @policy: VFUX_DMA_POLICY_ANY or VFUX_DMA_POLICY_LASTING
 *
 * A client that truncates the file behind a DMA region takes memory away that the
 * device may be using: the next access ends the process by SIGBUS. With
 * VFUX_DMA_POLICY_LASTING, DMA_MAP takes only:
 *
 * - a memfd sealed with F_SEAL_SHRINK; QEMU's memory-backend-memfd is, unless told
 *   otherwise;
 * - huge pages: files on hugetlbfs, and memfds made with MFD_HUGETLB;
 * - device DAX (/dev/dax*).
 *
 * Everything else that is to be mapped is refused with EPERM, and a line in the
 * log says so. Nothing is asked of the client's file system for that. Regions
 * reached by messages or by file I/O are taken as ever: there, memory that has gone
 * is an error.
 *
 * Of these, huge pages can still go: without the seal their owner can truncate the
 * file, and with it punch a hole and leave no huge page that could fill it. A
 * program whose clients it does not trust with that calls vfux_guard_dma(), too.
 *
 * What no policy can help against: that the machine has no memory left for a page
 * that is touched for the first time, where it is set up to refuse rather than to
 * overcommit (vm.overcommit_memory is 2). vfux_guard_dma() does.
 *
 * To be called before the client attaches.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   no such policy
 *   EEXIST   there are DMA regions
 */
int vfux_setup_dma_policy(vfu_ctx_t *vfu_ctx, int policy);

/**
 * Installs a handler of SIGBUS, for the whole process and for good, that keeps
 * memory which a client takes away from ending the process.
 *
 * DMA regions of all contexts that are mapped from then on are guarded: call it
 * before clients attach. When an access to one faults, because its client has
 * truncated the file, or the file system has no room for a page that is touched
 * for the first time, or a disk cannot be read:
 *
 * - Zeroed memory takes the place of the page (a huge page as a whole), and of all
 *   of the region from the fourth page on. The client does not share it; what the
 *   device writes to it takes up this process's memory until the region goes.
 * - The access goes on, and reads zeroes. vfu_sgl_read() and vfu_sgl_write() with
 *   VFU_SGL_DIRECT_ACCESS fail with EIO, then and later. A device that uses
 *   vfu_sgl_get() asks vfux_sg_is_lost() when it has used the memory, before it
 *   acts on what it has read or tells the guest that it is done.
 * - The context's poll descriptor becomes readable, and the next vfu_run_ctx() (one
 *   that is blocked: after the next request) says so in a line at LOG_ERR, once for
 *   a region, and calls the function of vfux_setup_dma_lost_cb().
 * - No other context notices anything.
 *
 * A system call that is given such memory (read(), io_uring, ...) does not raise
 * the signal, but fails with EFAULT: that is no loss to the library.
 *
 * Every other SIGBUS goes to the handler that was there before, with its mask and
 * flags, or does what it would have done without one: memory that the machine has
 * lost (BUS_MCEERR_AR, BUS_MCEERR_AO), kill(), and faults outside of DMA regions.
 * A program that handles SIGBUS itself installs its handler first; one that it
 * installs later takes the place of the guard, unless it passes on to it what is
 * not its own. Once called, the library must not be unloaded (dlclose()).
 *
 * A handler beside an unmap is safe: the library does not give a region's
 * addresses back while one works on it. Memory that the program itself has put
 * over a region's addresses is not told apart from the region.
 *
 * It belongs to no context, and so has no log.
 *
 * Threads: any, at any time. Calling it again does nothing.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   others   as sigaction() sets it
 */
int vfux_guard_dma(void);

/**
 * Told of a DMA region that has lost memory, see vfux_guard_dma().
 *
 * @vfu_ctx: the context
 * @info: the region; the library's, valid until its unregister callback returns
 * @offset: where that was noticed first: bytes from the region's start
 *
 * Called once for a region, by vfu_run_ctx() or before its unregister callback; and
 * once more in a process that has taken the device over (vfux_take_over()).
 * The device is not quiesced, and the region stays until the client unmaps it. A
 * device would stop what relies on it: fail the queue that lies there, set its
 * error bit, interrupt the guest. May call what a region callback may.
 */
typedef void (vfux_dma_lost_cb_t)(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info, uint64_t offset);

/**
 * Chooses who is told of DMA regions that have lost memory.
 *
 * @vfu_ctx: the context
 * @dma_lost: told of each; NULL: nobody is
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno: EINVAL if vfu_ctx is NULL.
 */
int vfux_setup_dma_lost_cb(vfu_ctx_t *vfu_ctx, vfux_dma_lost_cb_t *dma_lost);

/**
 * Says whether the region of an entry has lost memory, see vfux_guard_dma(): what
 * was read there before may be zeroes, and what was written there lost.
 *
 * @vfu_ctx: the context
 * @sg: the entry
 *
 * May be called from any thread while the device is not quiesced. It takes no lock
 * and never waits.
 *
 * Returns true if it has; false also for an entry whose region is not there.
 */
bool vfux_sg_is_lost(vfu_ctx_t *vfu_ctx, const dma_sg_t *sg);

/*
 * Live upgrade
 *
 * A device goes on in another process. docs/live-upgrade.md is where to begin.
 */

/** Version of vfux_hand_over_callbacks_t. */
#define VFUX_HAND_OVER_CALLBACKS_VERSION 1

/**
 * What a device has to do that goes to another process: argument of
 * vfux_setup_hand_over_callbacks().
 */
typedef struct {
	/** VFUX_HAND_OVER_CALLBACKS_VERSION */
	int version;
	/**
	 * In the process that has the device: gives all that the device in the other one
	 * has to know to vfux_put_state(). The device is quiesced, and stays so until
	 * handed_over. Returns 0, or -1 and sets errno: the device stays here.
	 *
	 * With NULL here and for load_state, what the device says when it migrates is
	 * taken, if it can.
	 */
	int (*save_state)(vfu_ctx_t *vfu_ctx);
	/**
	 * In the process that is to have it: takes all of that. Configuration space and
	 * DMA regions are there; the device does not run before handed_over says so.
	 * migration_state is the VFIO_USER_DEVICE_STATE_* that the client has put it
	 * into. Returns 0, or -1 and sets errno: the device stays there.
	 */
	int (*load_state)(vfu_ctx_t *vfu_ctx,
			  const void *data,
			  size_t size,
			  uint32_t migration_state);
	/**
	 * It is decided who has the device, in either process, once for each attempt: with
	 * is_ours, this one, where it runs again, or at last; without, the other one, and
	 * this one touches nothing any more that both have. May be NULL.
	 */
	void (*handed_over)(vfu_ctx_t *vfu_ctx, bool is_ours);
} vfux_hand_over_callbacks_t;

/**
 * Chooses what is called when the device goes to another process.
 *
 * @vfu_ctx: the context
 * @callbacks: copied; NULL: none
 *
 * The callbacks may call what a region callback may, but not DMA functions that ask
 * the client by messages: these fail with ENOTCONN, also in migration callbacks, until
 * the device is this process's. A device without internal state needs none of them; one
 * that migrates needs none if its migration state is all that matters. (It is not
 * where the device has to know what the client does not repeat, such as masks that it
 * was told of.) Both processes have to have the same: save_state and load_state, or
 * migration, or neither.
 *
 * A device with save_state and load_state can be taken over in the migration state
 * PRE_COPY at any time; they have to carry what was saved so far along. One without
 * them can as long as its client has read no data there; then it goes from PRE_COPY to
 * STOP_COPY in one process, and by RUNNING to PRE_COPY in the other.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   another version; only one of save_state and load_state
 */
int vfux_setup_hand_over_callbacks(vfu_ctx_t *vfu_ctx,
				   const vfux_hand_over_callbacks_t *callbacks);

/**
 * Adds to what the device says of its state: in save_state only, in as many calls as
 * one likes.
 *
 * @vfu_ctx: the context
 * @data: the bytes; copied
 * @size: how many
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   save_state does not run; data is NULL
 *   ENOMEM   no memory
 */
int vfux_put_state(vfu_ctx_t *vfu_ctx, const void *data, size_t size);

/**
 * Hands a descriptor of the device's own over with the device: an open file, a disk in
 * memory.
 *
 * @vfu_ctx: the context
 * @name: what the other process asks for it by, see vfux_get_old_fd(); copied
 * @fd: stays the caller's, and has to stay open as long as the context
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EEXIST   there is a descriptor of this name already
 *   EINVAL   name is NULL or empty
 *   EBADF    fd is negative
 */
int vfux_add_hand_over_fd(vfu_ctx_t *vfu_ctx, const char *name, int fd);

/**
 * Lets another process take the device over, with its client, who does not notice.
 *
 * @vfu_ctx: the context
 * @path: where to make a UNIX socket for that, at most 102 bytes; copied. A stale
 *        one is replaced, as by vfux_create_ctx_replacing()
 *
 * The other process has to run as the same user, or as root. Nothing happens before
 * vfux_hand_over() is called. The socket goes over with the device, so that the next
 * process can be taken over from at the same path.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EEXIST         there is such a socket already
 *   EINVAL         path is NULL
 *   ENAMETOOLONG   path is too long
 *   EADDRINUSE     something is there that is no stale socket
 *   others         as vfux_create_ctx_replacing() sets it, and epoll_create1()
 */
int vfux_setup_hand_over(vfu_ctx_t *vfu_ctx, const char *path);

/**
 * Lets another process take the device over, as vfux_setup_hand_over() does, over a
 * socket that the process was given.
 *
 * @vfu_ctx: the context
 * @fd: a UNIX socket of type SOCK_SEQPACKET that listens, or one that is connected to
 *      the process that wants to take over; the context's from then on if this succeeds
 *
 * A socket that listens goes over with the device; its path, if it has one, is left to
 * who made it. One that is connected is for one attempt: if that fails, there can be
 * another socket, and the descriptor of vfux_get_hand_over_fd() stays the same.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EEXIST     there is such a socket already, and somebody can still come by it
 *   EBADF, ENOTSOCK, ENOTSUP, ENOTCONN   as vfux_create_ctx_over_fd() sets it
 *   others     as epoll_create1() sets it
 */
int vfux_setup_hand_over_fd(vfu_ctx_t *vfu_ctx, int fd);

/**
 * Returns a descriptor that is readable when vfux_hand_over() has something to do.
 *
 * @vfu_ctx: the context
 *
 * It is for poll(), select() and epoll only; it is the library's, must not be closed,
 * and stays the same until vfux_hand_over() has returned 1.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h.
 *
 * Returns the descriptor, or -1 and sets errno:
 *
 *   ENOENT   no socket for taking over was set up
 */
int vfux_get_hand_over_fd(vfu_ctx_t *vfu_ctx);

/**
 * Answers a process that wants to take the device over.
 *
 * @vfu_ctx: the context
 * @timeout: milliseconds, more than 0
 *
 * To be called when the descriptor of vfux_get_hand_over_fd() is readable; a program
 * whose vfu_run_ctx() waits gets out of there by a signal first. At first the other
 * process only learns what the device is, and makes its own. That takes as long as it
 * takes; nobody waits, and this returns 0 at once.
 *
 * Then, in a later call, the device is made quiet (the quiesce callback), says what
 * its state is (save_state, or its migration callbacks), and everything is handed
 * over: the client's connection with what was received and not executed, and what is
 * unsent; DMA regions, eventfds, configuration space, the log of writes. The call waits
 * for the other process to have taken all of that, for timeout at the most, and as
 * long once more for it to say that it goes on. Whatever it does otherwise, or if it is
 * killed, the device goes on here, as if nothing had happened (the migration callbacks
 * bring it back to where it was; handed_over is called).
 *
 * After 1 there is no client, nor will there be: the program may vfu_destroy_ctx() the
 * context and exit, or just exit. The unregister callbacks run, the reset callback does
 * not. What the device has in common with the other process (a disk, the memory of a
 * BAR) is no longer its own.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h. Not
 * from callbacks.
 *
 * Returns 1: the device is the other process's; 0: nothing to be done, or done; or -1
 * and sets errno: an attempt has failed, a line in the log says why:
 *
 *   EBUSY        from inside a callback; something waits for the device to become
 *                quiet; the client is lost; the device is in the migration state
 *                STOP_COPY or RESUMING, or, without save_state, in ERROR, or in
 *                PRE_COPY when the client has read data; it was set up otherwise
 *                since the other process has asked what it is.
 *                Or its quiesce callback said so: then this is to be called again
 *                when vfu_device_quiesced() has been, and vfu_run_ctx() fails
 *                with EBUSY until then
 *   EPERM        the other process runs as another user
 *   ETIMEDOUT    it takes too long
 *   ECONNRESET   it has gone
 *   EINVAL       timeout is not more than 0; or the other process says that the
 *                device does not fit
 *   ENOENT       no socket for taking over was set up
 *   others       as the other process says, the callbacks, or the system
 */
int vfux_hand_over(vfu_ctx_t *vfu_ctx, int timeout);

/**
 * Makes a context for a device that another process has, in order to take it over.
 *
 * @path: where that process lets others take over, see vfux_setup_hand_over()
 * @timeout: milliseconds to wait for its answer, more than 0
 * @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
 * @pvt: for the device's use, see vfu_get_private(); may be NULL
 * @dev_type: VFU_DEV_TYPE_PCI
 *
 * What takes the place of vfu_create_ctx() in a program that goes on with a device. It
 * sets the device up as ever, up to vfu_realize_ctx(), and calls vfux_take_over() in the
 * place of the first vfu_attach_ctx(). What it needs for that of the other one, it gets
 * from vfux_get_old_region() (the memory of BARs that the client has mapped),
 * vfux_get_old_ioeventfd(), vfux_get_old_irq_count(), vfux_get_old_config_space() and
 * vfux_get_old_fd(). Meanwhile the other process goes on to serve the client.
 *
 * Threads: any, at any time.
 *
 * Returns the context, which vfu_destroy_ctx() releases (the other process then keeps
 * the device), or NULL and sets errno:
 *
 *   EINVAL       an unknown flag; path is NULL; timeout is not more than 0
 *   ENOTSUP      another type of device
 *   ETIMEDOUT    no answer
 *   ECONNRESET   the other process has gone
 *   EPERM        it runs as another user
 *   EPROTO       it is not what it should be
 *   EPROTONOSUPPORT   it has another version of this
 *   others       as socket() and connect() set it
 */
vfu_ctx_t *vfux_create_ctx_taking_over(const char *path,
				       int timeout,
				       int flags,
				       void *pvt,
				       vfu_dev_type_t dev_type);

/**
 * Makes a context as vfux_create_ctx_taking_over() does, over a socket that is connected
 * already.
 *
 * @fd: a connected UNIX socket of type SOCK_SEQPACKET; the context's, or closed, from
 *      then on, unless this fails with EINVAL, EBADF, ENOTSOCK, ENOTSUP or ENOTCONN
 * @timeout: milliseconds to wait for an answer, more than 0
 * @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
 * @pvt: for the device's use, see vfu_get_private(); may be NULL
 * @dev_type: VFU_DEV_TYPE_PCI
 *
 * Threads: any, at any time.
 *
 * Returns the context, or NULL and sets errno as vfux_create_ctx_taking_over() does, or
 * to EBADF, ENOTSOCK, ENOTSUP or ENOTCONN for a descriptor that is no such socket.
 */
vfu_ctx_t *vfux_create_ctx_taking_over_fd(int fd,
					  int timeout,
					  int flags,
					  void *pvt,
					  vfu_dev_type_t dev_type);

/** A region of the device that is to be taken over, see vfux_get_old_region(). */
typedef struct {
	/** Bytes. */
	uint64_t size;
	/** Where the region starts in fd, in bytes. */
	uint64_t offset;
	/** VFU_REGION_FLAG_* */
	uint32_t flags;
	/** What the client may map, and may have mapped: the caller's to close; or -1. */
	int fd;
} vfux_old_region_t;

/**
 * Says what a region is in the process that is to be taken over from.
 *
 * @vfu_ctx: a context of vfux_create_ctx_taking_over()
 * @region_idx: the region
 * @region: filled in
 *
 * A region over memory has to be set up over region->fd, with the same offset and areas:
 * the client may have mapped it.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h; before
 * vfux_take_over().
 *
 * Returns 0, or -1 and sets errno:
 *
 *   ENOENT   it is not set up there
 *   EINVAL   region is NULL; there is no other process (any more)
 *   EMFILE   too many open descriptors
 */
int vfux_get_old_region(vfu_ctx_t *vfu_ctx,
			uint32_t region_idx,
			vfux_old_region_t *region);

/** An eventfd of the device that is to be taken over, see vfux_get_old_ioeventfd(). */
typedef struct {
	/** Offset in the region. */
	uint64_t gpa_offset;
	/** As it was given to vfu_create_ioeventfd(). */
	uint64_t datamatch;
	/** Bytes. */
	uint32_t size;
	/** As it was given to vfu_create_ioeventfd(). */
	uint32_t flags;
	/** The eventfd: the caller's to close; or -1. */
	int fd;
	/** Not used. */
	uint32_t reserved;
} vfux_old_ioeventfd_t;

/**
 * Says which eventfds there are for writes to a region in the process that is to be
 * taken over from.
 *
 * @vfu_ctx: a context of vfux_create_ctx_taking_over()
 * @region_idx: the region
 * @n: 0 for the first, and so on
 * @ioeventfd: filled in
 *
 * The client's hypervisor may signal them. So the device creates the same ones by
 * vfu_create_ioeventfd(), in the same order, over ioeventfd->fd.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h; before
 * vfux_take_over().
 *
 * Returns 0, or -1 and sets errno:
 *
 *   ENOENT   there are not so many
 *   EINVAL   ioeventfd is NULL; there is no other process (any more)
 *   EMFILE   too many open descriptors
 */
int vfux_get_old_ioeventfd(vfu_ctx_t *vfu_ctx,
			   uint32_t region_idx,
			   uint32_t n,
			   vfux_old_ioeventfd_t *ioeventfd);

/**
 * Says how many interrupts of a type the device has in the process that is to be taken
 * over from.
 *
 * @vfu_ctx: a context of vfux_create_ctx_taking_over()
 * @type: enum vfu_dev_irq_type
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h; before
 * vfux_take_over().
 *
 * Returns the number, or -1 and sets errno:
 *
 *   EINVAL   no such type; there is no other process (any more)
 */
int vfux_get_old_irq_count(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type);

/**
 * Copies configuration space of the process that is to be taken over from.
 *
 * @vfu_ctx: a context of vfux_create_ctx_taking_over()
 * @buf: filled in
 * @count: number of bytes
 * @offset: of the first byte
 *
 * As it was when the context was made. vfux_take_over() brings it up to date by itself,
 * all of it.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h; before
 * vfux_take_over().
 *
 * Returns 0, or -1 and sets errno:
 *
 *   EINVAL   the bytes are not within it; buf is NULL; there is no other process
 *            (any more)
 */
int vfux_get_old_config_space(vfu_ctx_t *vfu_ctx, void *buf, size_t count, size_t offset);

/**
 * Returns a descriptor that the device of the process that is to be taken over from has
 * named, see vfux_add_hand_over_fd().
 *
 * @vfu_ctx: a context of vfux_create_ctx_taking_over()
 * @name: its name
 *
 * It is a duplicate (of the same open file, with its offset), and the caller's to close.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h; before
 * vfux_take_over().
 *
 * Returns the descriptor, or -1 and sets errno:
 *
 *   ENOENT   there is none of this name
 *   EINVAL   name is NULL; there is no other process (any more)
 *   EMFILE   too many open descriptors
 */
int vfux_get_old_fd(vfu_ctx_t *vfu_ctx, const char *name);

/**
 * Takes the device over: from here on it is this process's, and so is its client.
 *
 * @vfu_ctx: a context of vfux_create_ctx_taking_over(), set up like the device of the
 *           other process, and realized
 * @timeout: milliseconds, more than 0: how long to wait for each of three answers
 *
 * The device has to be the same in all that the client has been told: regions with
 * their sizes, flags and areas, over the same memory; numbers of interrupts;
 * capabilities; ioeventfds. It may allow more DMA regions. Configuration space, DMA
 * regions (their register callbacks run), eventfds, the log of writes and the state of
 * the device (load_state, or the migration callbacks: STOP, RESUMING, the data, STOP)
 * come from the other process, and the socket where clients connect, with its path.
 *
 * The DMA regions come first, while the other process still serves its client; for those
 * that the client takes away before the rest has come the unregister callbacks run.
 *
 * Once this has succeeded the device runs (the migration callback with RUNNING, if the
 * client has it run; handed_over), and the descriptor of vfu_get_poll_fd() is readable if
 * there is something to do.
 *
 * If it fails, the other process goes on, and this context can only be destroyed: the
 * unregister callbacks run, the reset callback does not.
 *
 * Threads: on the thread that uses the context, see the top of libvfio-user.h. Not from
 * callbacks.
 *
 * Returns 1: a client is attached, vfu_run_ctx() serves it; 0: there is none (yet),
 * vfu_attach_ctx() takes one on; or -1 and sets errno, a line in the log says why:
 *
 *   EINVAL       the device is not like the one of the other process; there is no
 *                other process (any more); timeout is not more than 0;
 *                vfu_realize_ctx() has not been called
 *   EBUSY        it cannot be had at the moment, see vfux_hand_over(): try again later,
 *                with a new context
 *   ETIMEDOUT    the other process takes too long
 *   ECONNRESET   it has gone
 *   EPROTO, EPROTONOSUPPORT   what it says cannot be understood
 *   others       as the other process says, the callbacks, or the system
 */
int vfux_take_over(vfu_ctx_t *vfu_ctx, int timeout);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_EXT_H */
