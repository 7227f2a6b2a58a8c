/*
 * A session: a device that uses all that the library has, a client that makes it
 * do so, and what has to be true of each step whatever call fails.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef SESSION_H
#define SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <vfio-user/libvfio-user.h>

enum session_kind {
    SESSION_TWIN,     /* non-blocking, with the second socket for the server's commands */
    SESSION_SINGLE,   /* non-blocking, with one socket */
    SESSION_BLOCKING, /* a thread waits in the library */
    SESSION_KINDS
};

extern const char *const session_names[SESSION_KINDS];

/* Runs the session from vfu_create_ctx() to vfu_destroy_ctx(), and checks it. */
void session_run(enum session_kind kind);

/* --- device.c --- */

enum { GUEST = 0x100000, GUEST_SIZE = 0x10000, BAR_SIZE = 0x80000, STATE_SIZE = 300000 };

struct device {
    vfu_ctx_t *ctx;
    enum session_kind kind;
    int bar_fd;    /* the memory that may be mapped */
    int io_fds[2]; /* eventfds */
    int dma_regions;
    bool quiesce_later; /* the quiesce callback asks for time, once */
};

/* Makes the context of a device, and a device that failed to be made once more:
 * only one call fails. */
void device_create(struct device *device, enum session_kind kind, const char *path);

/* Destroys the context and closes what the device passed in. */
void device_destroy(struct device *device);

/* Uses the guest's memory, and triggers interrupts, as a device does: anything may
 * fail, but not come out wrong. */
void device_use_memory(struct device *device, uint64_t iova, size_t length, int flags);
void device_trigger(struct device *device);

/* --- client.c --- */

enum outcome { DONE, REFUSED, LOST };

struct client {
    struct device *device;
    int fd, twin;
    uint16_t id;
    bool reported;    /* vfu_run_ctx() said that the connection is lost */
    size_t have;      /* bytes received and not used */
    size_t size;      /* of the last reply's payload */
    uint32_t error;   /* of the last reply */
    char *buffer;     /* header and payload of the last reply */
};

/* Connects, negotiates; again, if a fault kept it from succeeding. */
void client_attach(struct client *client, struct device *device);

/* Sends a command and has the library run until it is answered or the loss of the
 * connection was reported. */
enum outcome client_request(struct client *client, int cmd, const void *payload, size_t size, int pass);
void client_send_only(struct client *client, int cmd, uint32_t flags, const void *payload, size_t size, int pass);
void client_send_raw(struct client *client, const void *bytes, size_t size, int pass);
enum outcome client_await(struct client *client);
const void *client_payload(const struct client *client);

/* Calls vfu_run_ctx() once, which may fail in the ways that a fault explains. */
void client_run_once(struct client *client);

/* Goes, and has the loss reported. */
void client_detach(struct client *client);

/* Answers the server's commands on its socket, in a thread, until it is ended. */
void client_serve_memory(struct client *client);
void client_stop_serving(struct client *client);

/* The library's thread of SESSION_BLOCKING. */
void client_start_server(struct device *device);
void client_stop_server(void);
void client_no_more(void);

#endif /* SESSION_H */
