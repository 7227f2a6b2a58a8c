/* The client of the session; see session.h.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/un.h>

#include "../c/check.h"
#include "session.h"
#include "shim.h"
#include "socket.h"

/* Calls of the library that may follow each other with nothing achieved. One call
 * is made to fail; what it leads to is noticed by the next ones. */
enum { PATIENCE = 8, ROOM = 1 << 20, WAIT_MS = 10000 };

const void *
client_payload(const struct client *client)
{
    return client->buffer + sizeof(struct vfio_user_header);
}

static bool
is_blocking(const struct client *client)
{
    return client->device->kind == SESSION_BLOCKING;
}

/* Takes what has arrived. False: the server has closed the connection. */
static bool
take(struct client *client, int flags)
{
    int passed = -1;
    ssize_t got = socket_recv(client->fd, client->buffer + client->have, ROOM - client->have, flags, &passed);

    if (passed != -1 && client->device->kind == SESSION_TWIN && client->twin == -1) {
        client->twin = passed;
    } else if (passed != -1) {
        close(passed);
    }
    if (got < 0) {
        CHECK(errno == EAGAIN || errno == ECONNRESET);
        return errno == EAGAIN;
    }
    client->have += got;
    return got > 0;
}

/* Whether a whole message has arrived, which is then the reply to the last command. */
static bool
has_reply(struct client *client)
{
    struct vfio_user_header *header = (struct vfio_user_header *)client->buffer;

    /* The server's commands whose answers a fault kept it from waiting for. */
    while (client->have >= sizeof(*header) && header->flags == VFIO_USER_F_TYPE_COMMAND &&
           client->have >= header->msg_size) {
        CHECK(shim_fired() && client->device->kind == SESSION_SINGLE);
        client->have -= header->msg_size;
        memmove(client->buffer, client->buffer + header->msg_size, client->have);
    }
    if (client->have < sizeof(*header) || client->have < header->msg_size) {
        return false;
    }
    CHECK_EQ(client->have, header->msg_size);
    CHECK_EQ(header->msg_id, client->id);
    CHECK((header->flags & ~VFIO_USER_F_ERROR) == VFIO_USER_F_TYPE_REPLY);
    client->error = header->flags & VFIO_USER_F_ERROR ? header->error_no : 0;
    CHECK(!(header->flags & VFIO_USER_F_ERROR) || header->error_no != 0);
    client->size = header->msg_size - sizeof(*header);
    client->have = 0;
    return true;
}

/* The descriptor that is polled has to say that there is something to do. */
static void
check_readable(struct client *client)
{
    struct pollfd entry = { .fd = vfu_get_poll_fd(client->device->ctx), .events = POLLIN };

    CHECK(entry.fd >= 0);
    CHECK_EQ(poll(&entry, 1, 0), 1);
}

/* Returns whether the loss of the connection was reported. */
static bool
run(struct client *client)
{
    int result = VFU(vfu_run_ctx(client->device->ctx));

    if (result >= 0) {
        return false;
    }
    if (errno == EBUSY) {
        if (VFU(vfu_device_quiesced(client->device->ctx, 0)) < 0) {
            CHECK(shim_fired());
        }
        return false;
    }
    if (errno != ENOTCONN) {
        CHECK(shim_fired());
    }
    return errno == ENOTCONN;
}

void
client_run_once(struct client *client)
{
    if (!is_blocking(client) && run(client)) {
        CHECK(shim_fired());
        client->reported = true;
    }
}

static enum outcome
lose(struct client *client)
{
    CHECK(shim_fired());
    close(client->fd);
    client->fd = -1;
    return LOST;
}

enum outcome
client_await(struct client *client)
{
    struct pollfd entry = { .fd = client->fd, .events = POLLIN };

    if (client->fd == -1) {
        return LOST;
    }
    if (is_blocking(client)) {
        do {
            CHECK_EQ(poll(&entry, 1, WAIT_MS), 1);
            if (!take(client, 0)) {
                return lose(client);
            }
        } while (!has_reply(client));
        return client->error == 0 ? DONE : REFUSED;
    }
    for (int i = 0; i < PATIENCE * 100; i++) {
        size_t before = client->have;
        bool open = take(client, MSG_DONTWAIT);
        if (has_reply(client)) {
            return client->error == 0 ? DONE : REFUSED;
        }
        if (client->reported) {
            CHECK(!open); /* the client is told as well */
            return lose(client);
        }
        /* A large message takes many turns, but none without anything done. */
        if (client->have != before) {
            i = i / PATIENCE * PATIENCE;
        }
        CHECK(i % PATIENCE < PATIENCE - 1);
        check_readable(client);
        client->reported = run(client);
    }
    CHECK(!"answered at last");
    return LOST;
}

void
client_send_raw(struct client *client, const void *bytes, size_t size, int pass)
{
    const char *at = bytes;

    while (size > 0 && client->fd != -1) {
        ssize_t sent = socket_send(client->fd, at, size, pass);
        if (sent < 0 && errno == EAGAIN) {
            /* The server has to take some of it. */
            if (is_blocking(client)) {
                sched_yield();
            } else {
                check_readable(client);
                client_run_once(client);
            }
            continue;
        }
        if (sent < 0) {
            CHECK(shim_fired());
            return; /* lost, which is yet to be reported */
        }
        at += sent;
        size -= sent;
        pass = -1;
    }
}

void
client_send_only(struct client *client, int cmd, uint32_t flags, const void *payload, size_t size, int pass)
{
    struct vfio_user_header header = {
        .msg_id = ++client->id, .cmd = cmd, .msg_size = sizeof(header) + size, .flags = flags };
    char *message = malloc(sizeof(header) + size);

    memcpy(message, &header, sizeof(header));
    memcpy(message + sizeof(header), payload, size);
    client_send_raw(client, message, sizeof(header) + size, pass);
    free(message);
}

enum outcome
client_request(struct client *client, int cmd, const void *payload, size_t size, int pass)
{
    bool fired = shim_fired();
    enum outcome outcome;

    if (client->fd == -1) {
        return LOST;
    }
    client_send_only(client, cmd, 0, payload, size, pass);
    outcome = client_await(client);
    CHECK(outcome == DONE || fired || shim_fired());
    return outcome;
}

/* --- attaching --------------------------------------------------------------- */

static bool
attach_once(struct client *client)
{
    static const char capabilities[] =
        "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true},\"write_multiple\":true}}";
    struct {
        struct vfio_user_version version;
        char text[sizeof(capabilities)];
    } message = { .version = { .major = 0, .minor = 2 } };
    size_t size = sizeof(message.version);

    client->fd = socket_connect();
    client->twin = -1;
    client->have = 0;
    client->reported = false;
    if (client->device->kind == SESSION_TWIN) {
        memcpy(message.text, capabilities, sizeof(capabilities));
        size += sizeof(capabilities);
    }
    client_send_only(client, VFIO_USER_VERSION, 0, &message, size, -1);
    for (int i = 0; !is_blocking(client); i++) {
        CHECK(i < PATIENCE);
        check_readable(client);
        if (VFU(vfu_attach_ctx(client->device->ctx)) == 0) {
            break;
        }
        CHECK(shim_fired());
        if (!take(client, MSG_DONTWAIT)) {
            close(client->fd);
            return false;
        }
        if (client->have > 0) {
            break; /* refused, in so many words */
        }
    }
    if (client_await(client) == DONE) {
        return true;
    }
    CHECK(shim_fired());
    if (client->fd != -1) {
        /* The answer was an error; the server hangs up. */
        CHECK(!take(client, is_blocking(client) ? 0 : MSG_DONTWAIT));
        close(client->fd);
    }
    return false;
}

void
client_attach(struct client *client, struct device *device)
{
    *client = (struct client) { .device = device, .buffer = malloc(ROOM) };
    if (!attach_once(client)) {
        CHECK(shim_fired());
        CHECK(attach_once(client));
    }
}

void
client_detach(struct client *client)
{
    if (client->fd != -1) {
        close(client->fd);
        for (int i = 0; !is_blocking(client) && !client->reported; i++) {
            CHECK(i < PATIENCE);
            check_readable(client);
            client->reported = run(client);
        }
    }
    if (client->twin != -1) {
        close(client->twin);
    }
    free(client->buffer);
}

/* --- the guest's memory, by messages ------------------------------------------ */

static struct {
    pthread_t thread;
    int fd, stop;
    char memory[GUEST_SIZE * 4];
} guest;

/* One command: false if the server has gone. */
static bool
serve_one(void)
{
    static char message[sizeof(struct vfio_user_header) + 16 + (1 << 20)];
    struct vfio_user_header *header = (void *)message;
    struct vfio_user_dma_region_access *access = (void *)(header + 1);
    size_t size;

    if (!socket_read(guest.fd, header, sizeof(*header)) ||
        !socket_read(guest.fd, access, header->msg_size - sizeof(*header))) {
        return false;
    }
    CHECK(header->cmd == VFIO_USER_DMA_READ || header->cmd == VFIO_USER_DMA_WRITE);
    CHECK(access->addr % GUEST_SIZE + access->count <= sizeof(guest.memory));
    size = sizeof(*access);
    if (header->cmd == VFIO_USER_DMA_WRITE) {
        memcpy(guest.memory + access->addr % GUEST_SIZE, access->data, access->count);
    } else {
        memcpy(access->data, guest.memory + access->addr % GUEST_SIZE, access->count);
        size += access->count;
    }
    header->flags = VFIO_USER_F_TYPE_REPLY;
    header->msg_size = sizeof(*header) + size;
    return socket_send_all(guest.fd, message, header->msg_size);
}

static void *
serve(void *nothing)
{
    struct pollfd entries[] = { { .fd = guest.fd, .events = POLLIN }, { .fd = guest.stop, .events = POLLIN } };

    do {
        CHECK(poll(entries, 2, WAIT_MS) > 0);
    } while (entries[1].revents == 0 && (entries[0].revents == 0 || serve_one()));
    return nothing;
}

void
client_serve_memory(struct client *client)
{
    guest.fd = client->twin != -1 ? client->twin : client->fd;
    guest.stop = eventfd(0, EFD_CLOEXEC);
    CHECK_EQ(pthread_create(&guest.thread, NULL, serve, NULL), 0);
}

void
client_stop_serving(struct client *client)
{
    (void)client;
    CHECK_EQ(eventfd_write(guest.stop, 1), 0);
    CHECK_EQ(pthread_join(guest.thread, NULL), 0);
    close(guest.stop);
}

/* --- a thread that waits in the library ---------------------------------------- */

static pthread_t server;
static atomic_bool no_more;

static void
attach_in_server(struct device *device)
{
    for (int i = 0; VFU(vfu_attach_ctx(device->ctx)) < 0 && !atomic_load(&no_more); i++) {
        CHECK(shim_fired() && i < PATIENCE);
    }
}

static void *
run_server(void *argument)
{
    struct device *device = argument;
    int failures = 0;

    while (!atomic_load(&no_more)) {
        attach_in_server(device);
        while (VFU(vfu_run_ctx(device->ctx)) == -1 && errno != ENOTCONN) {
            if (errno == EBUSY) {
                CHECK(VFU(vfu_device_quiesced(device->ctx, 0)) == 0 || shim_fired());
            } else {
                CHECK(shim_fired() && ++failures < PATIENCE);
            }
        }
    }
    return NULL;
}

void
client_start_server(struct device *device)
{
    atomic_store(&no_more, false);
    CHECK_EQ(pthread_create(&server, NULL, run_server, device), 0);
}

/* The client that is attached is the last: to be called before it goes. */
void
client_no_more(void)
{
    atomic_store(&no_more, true);
}

void
client_stop_server(void)
{
    /* It may have lost the last client and wait for another. */
    int fd = socket_connect();

    close(fd);
    CHECK_EQ(pthread_join(server, NULL), 0);
}
