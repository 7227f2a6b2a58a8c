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

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_EXT_H */
