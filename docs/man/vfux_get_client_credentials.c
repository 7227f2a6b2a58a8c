/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdbool.h>
#include <vfio-user/libvfio-user-ext.h>

/* After vfu_attach_ctx(): whether the client runs as the user that it should. */
bool
is_welcome(vfu_ctx_t *ctx, uid_t user)
{
    vfux_credentials_t who;

    if (vfux_get_client_credentials(ctx, &who) < 0) {
        return false;
    }
    vfu_log(ctx, LOG_INFO, "client: process %d of user %u", (int)who.pid, (unsigned)who.uid);
    return who.uid == user;
}
