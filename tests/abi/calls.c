/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What every function of the library owes to C: no crash for NULL, errno that
 * says why, printf() formats, threads that can be cancelled.
 *
 * Usage: calls PATH, where PATH is free for a socket.
 */
#include <libvfio-user.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <ucontext.h>

#define EXPECT(what) \
	do { \
		if (!(what)) { \
			printf("line %d: %s, errno %d\n", __LINE__, #what, errno); \
			exit(1); \
		} \
	} while (0)

/* A call that has to fail with a result and an errno. */
#define FAILS(call, result, number) \
	do { \
		errno = 0; \
		EXPECT((call) == (result)); \
		EXPECT(errno == (number)); \
	} while (0)

static void without_context(void)
{
	vfu_migration_callbacks_t callbacks;
	struct iovec iov;
	char sg[64], byte = 0;

	memset(&callbacks, 0, sizeof(callbacks));
	memset(sg, 0, sizeof(sg));

	FAILS(vfu_get_private(NULL), NULL, EINVAL);
	FAILS(vfu_setup_device_reset_cb(NULL, NULL), -1, EINVAL);
	vfu_setup_device_quiesce_cb(NULL, NULL);
	FAILS(vfu_realize_ctx(NULL), -1, EINVAL);
	FAILS(vfu_attach_ctx(NULL), -1, EINVAL);
	FAILS(vfu_get_poll_fd(NULL), -1, EINVAL);
	FAILS(vfu_run_ctx(NULL), -1, EINVAL);
	FAILS(vfu_device_quiesced(NULL, 0), -1, EINVAL);
	vfu_destroy_ctx(NULL);
	FAILS(vfu_setup_region(NULL, 0, 0, NULL, VFU_REGION_FLAG_RW, NULL, 0, -1, 0), -1, EINVAL);
	FAILS(vfu_setup_device_nr_irqs(NULL, VFU_DEV_INTX_IRQ, 1), -1, EINVAL);
	FAILS(vfu_setup_irq_state_callback(NULL, VFU_DEV_INTX_IRQ, NULL), -1, EINVAL);
	FAILS(vfu_irq_trigger(NULL, 0), -1, EINVAL);
	FAILS(vfu_setup_device_dma(NULL, 1, NULL, NULL), -1, EINVAL);
	FAILS(vfu_addr_to_sgl(NULL, NULL, 1, (dma_sg_t *)sg, 1, 1), -1, EINVAL);
	FAILS(vfu_sg_is_mappable(NULL, (dma_sg_t *)sg), false, EINVAL);
	FAILS(vfu_sgl_get(NULL, (dma_sg_t *)sg, &iov, 1, 0), -1, EINVAL);
	vfu_sgl_put(NULL, (dma_sg_t *)sg, &iov, 1);
	vfu_sgl_mark_dirty(NULL, (dma_sg_t *)sg, 1);
	FAILS(vfu_sgl_read(NULL, (dma_sg_t *)sg, 1, &byte, 0), -1, EINVAL);
	FAILS(vfu_sgl_write(NULL, (dma_sg_t *)sg, 1, &byte, 0), -1, EINVAL);
	FAILS(vfu_pci_init(NULL, VFU_PCI_TYPE_EXPRESS, 0, 0), -1, EINVAL);
	vfu_pci_set_id(NULL, 1, 2, 3, 4);
	vfu_pci_set_class(NULL, 1, 2, 3);
	FAILS(vfu_pci_get_config_space(NULL), NULL, EINVAL);
	FAILS(vfu_pci_add_capability(NULL, 0, 0, &byte), -1, EINVAL);
	FAILS(vfu_pci_find_capability(NULL, false, 1), 0, EINVAL);
	FAILS(vfu_pci_find_next_capability(NULL, false, 0, 1), 0, EINVAL);
	FAILS(vfu_setup_device_migration_callbacks(NULL, &callbacks), -1, EINVAL);
	FAILS(vfu_setup_log(NULL, NULL, LOG_ERR), -1, EINVAL);
	FAILS(vfu_create_ioeventfd(NULL, 0, -1, 0, 4, 0, 0, -1, 0), -1, EINVAL);
	errno = 77;
	vfu_log(NULL, LOG_ERR, "%s", "nobody hears this");
	EXPECT(errno == 77);
}

static void without_pointers(vfu_ctx_t *ctx)
{
	char sg[64];

	memset(sg, 0, sizeof(sg));
	FAILS(vfu_addr_to_sgl(ctx, NULL, 1, NULL, 1, 1), -1, EINVAL);
	FAILS(vfu_sg_is_mappable(ctx, NULL), false, EINVAL);
	FAILS(vfu_sgl_get(ctx, NULL, NULL, 1, 0), -1, EINVAL);
	FAILS(vfu_sgl_get(ctx, (dma_sg_t *)sg, NULL, 1, 0), -1, EINVAL);
	vfu_sgl_put(ctx, NULL, NULL, 1);
	vfu_sgl_mark_dirty(ctx, NULL, 1);
	FAILS(vfu_sgl_read(ctx, NULL, 1, sg, 0), -1, EINVAL);
	FAILS(vfu_sgl_read(ctx, (dma_sg_t *)sg, 1, NULL, 0), -1, EINVAL);
	FAILS(vfu_sgl_write(ctx, NULL, 1, sg, 0), -1, EINVAL);
	FAILS(vfu_sgl_write(ctx, (dma_sg_t *)sg, 1, NULL, 0), -1, EINVAL);
	FAILS(vfu_pci_add_capability(ctx, 0, 0, NULL), -1, EINVAL);
	FAILS(vfu_setup_device_migration_callbacks(ctx, NULL), -1, EINVAL);
}

static void creation(const char *path)
{
	FAILS(vfu_create_ctx(VFU_TRANS_SOCK, path, 2, NULL, VFU_DEV_TYPE_PCI), NULL, EINVAL);
	/* The flags come first, then the transport, the device, the path. */
	FAILS(vfu_create_ctx(VFU_TRANS_PIPE, path, 2, NULL, (vfu_dev_type_t)7), NULL, EINVAL);
	FAILS(vfu_create_ctx(VFU_TRANS_PIPE, NULL, 0, NULL, VFU_DEV_TYPE_PCI), NULL, ENOTSUP);
	FAILS(vfu_create_ctx((vfu_trans_t)99, path, 0, NULL, VFU_DEV_TYPE_PCI), NULL, ENOTSUP);
	FAILS(vfu_create_ctx(VFU_TRANS_SOCK, NULL, 0, NULL, (vfu_dev_type_t)7), NULL, ENOTSUP);
	FAILS(vfu_create_ctx(VFU_TRANS_SOCK, NULL, 0, NULL, VFU_DEV_TYPE_PCI), NULL, EINVAL);
}

static char logged[10000];
static int log_calls;

static void on_log(vfu_ctx_t *ctx, int level, const char *text)
{
	(void)ctx;
	(void)level;
	snprintf(logged, sizeof(logged), "%s", text);
	log_calls++;
	errno = 1234;
}

static void logging(vfu_ctx_t *ctx)
{
	static char text[9000];
	int calls;

	vfu_log(ctx, LOG_ERR, "no function yet");
	FAILS(vfu_setup_log(ctx, on_log, 8), -1, EINVAL);
	FAILS(vfu_setup_log(ctx, on_log, -1), -1, EINVAL);
	EXPECT(vfu_setup_log(ctx, on_log, LOG_INFO) == 0);

	errno = ENOTTY;
	vfu_log(ctx, LOG_ERR, "%d %s %#llx %.2f %c: %m", -5, "five", 0xffffffffffffULL, 1.5, 'x');
	EXPECT(errno == ENOTTY);
	EXPECT(strcmp(logged, "-5 five 0xffffffffffff 1.50 x: Inappropriate ioctl for device") == 0);

	/* More arguments than registers hold. */
	vfu_log(ctx, LOG_INFO, "%d%d%d%d%d%d%d%d%d %g%g%g%g%g%g%g%g%g", 1, 2, 3, 4, 5, 6, 7, 8, 9,
		1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0);
	EXPECT(strcmp(logged, "123456789 123456789") == 0);

	/* Cut in the middle of a character, of which nothing may be left. */
	memset(text, 'a', sizeof(text) - 1);
	memcpy(text + 8190, "\xc3\xa9", 2);
	vfu_log(ctx, LOG_INFO, "%s", text);
	EXPECT(strlen(logged) == 8190);
	memset(text, 'a', sizeof(text) - 1);
	vfu_log(ctx, LOG_INFO, "%s", text);
	EXPECT(strlen(logged) == 8191);
	vfu_log(ctx, LOG_INFO, "a%sb", "\xff\xc3");
	EXPECT(strcmp(logged, "a??b") == 0);

	calls = log_calls;
	vfu_log(ctx, LOG_DEBUG, "%s", "off");
	vfu_log(ctx, LOG_ERR, NULL);
	EXPECT(log_calls == calls);

	EXPECT(vfu_setup_log(ctx, NULL, LOG_INFO) == 0);
	vfu_log(ctx, LOG_ERR, "off");
	EXPECT(log_calls == calls);
}

static pthread_barrier_t started;
static int cancel_type;
static pid_t waiting;
static int (*waits)(vfu_ctx_t *ctx);

static void *wait_for_client(void *ctx)
{
	waiting = (pid_t)syscall(SYS_gettid);
	pthread_barrier_wait(&started);
	pthread_setcanceltype(cancel_type, NULL);
	waits((vfu_ctx_t *)ctx);
	return NULL;
}

/* Whether a thread of this process sleeps in the kernel; one that has ended does not. */
static bool sleeps(pid_t thread)
{
	char path[64], state = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)thread);
	file = fopen(path, "r");
	if (file == NULL)
		return false;
	EXPECT(fscanf(file, "%*d %*s %c", &state) == 1);
	fclose(file);
	return state == 'S';
}

/*
 * A thread that waits for a client can be cancelled, on its way there and there:
 * on its way after so many rounds of a loop.
 */
static void cancellation(vfu_ctx_t *ctx, int type, bool asleep, int later)
{
	volatile int round;
	pthread_t thread;
	void *result;

	cancel_type = type;
	EXPECT(pthread_barrier_init(&started, NULL, 2) == 0);
	EXPECT(pthread_create(&thread, NULL, wait_for_client, ctx) == 0);
	pthread_barrier_wait(&started);
	/* Destroyed only when the other thread has left it, too. */
	EXPECT(pthread_barrier_destroy(&started) == 0);
	while (asleep && !sleeps(waiting))
		sched_yield();
	for (round = 0; round < later; round++)
		;
	EXPECT(pthread_cancel(thread) == 0);
	EXPECT(pthread_join(thread, &result) == 0);
	EXPECT(result == PTHREAD_CANCELED);
}

/* Asleep, and at many places on the way. */
static void cancellations(vfu_ctx_t *ctx, int (*function)(vfu_ctx_t *ctx))
{
	int type, i;

	waits = function;
	for (i = 0; i < 2000; i++) {
		type = i % 2 ? PTHREAD_CANCEL_DEFERRED : PTHREAD_CANCEL_ASYNCHRONOUS;
		cancellation(ctx, type, i < 20, 5 * (i % 1000));
	}
}

/* The signal of pthread_cancel() in glibc, whose functions do not block it. */
#define SIGCANCEL 32

static volatile bool in_library, came_back;

/* Where the thread sleeps: the request arrives when this returns. */
static void let_it_arrive(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	sigemptyset(&((ucontext_t *)context)->uc_sigmask);
}

/* And if it has not until now, it does in this cancellation point. */
static void on_refusal(vfu_ctx_t *ctx, int level, const char *text)
{
	const struct timespec now = { 0, 0 };
	sigset_t nothing;

	(void)ctx;
	(void)level;
	(void)text;
	sigemptyset(&nothing);
	pselect(0, NULL, NULL, NULL, &now, &nothing);
	came_back = true;
}

static int read_nothing(vfu_ctx_t *ctx)
{
	char sg[64] = { 0 }, byte;

	return vfu_sgl_read(ctx, (dma_sg_t *)sg, 2, &byte, 0);
}

static int write_nothing(vfu_ctx_t *ctx)
{
	char sg[64] = { 0 }, byte = 0;

	return vfu_sgl_write(ctx, (dma_sg_t *)sg, 2, &byte, 0);
}

static void *go_on_until_it_arrives(void *ctx)
{
	uint64_t set = 1ULL << (SIGCANCEL - 1);

	waiting = (pid_t)syscall(SYS_gettid);
	EXPECT(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, sizeof(set)) == 0);
	EXPECT(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL) == 0);
	pthread_barrier_wait(&started);
	/* The request is made here. */
	pthread_barrier_wait(&started);
	in_library = true;
	waits((vfu_ctx_t *)ctx);
	return NULL;
}

/*
 * A request of asynchronous type that was made before a function was called, and whose
 * signal is still on its way: what the function calls back is not cut short, nor is the
 * function where that would end the process; then the thread ends. With glibc 2.36 the
 * library has to wait for the signal before it calls anything back.
 */
static void cancellation_that_is_on_its_way(vfu_ctx_t *ctx, int (*function)(vfu_ctx_t *ctx))
{
	struct sigaction action;
	pthread_t thread;
	void *result;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = let_it_arrive;
	action.sa_flags = SA_SIGINFO | SA_RESTART;
	EXPECT(sigaction(SIGUSR1, &action, NULL) == 0);
	waits = function;
	in_library = came_back = false;
	EXPECT(pthread_barrier_init(&started, NULL, 2) == 0);
	EXPECT(pthread_create(&thread, NULL, go_on_until_it_arrives, ctx) == 0);
	pthread_barrier_wait(&started);
	EXPECT(pthread_cancel(thread) == 0);
	pthread_barrier_wait(&started);
	EXPECT(pthread_barrier_destroy(&started) == 0);
	while (!came_back && !(in_library && sleeps(waiting)))
		sched_yield();
	pthread_kill(thread, SIGUSR1);
	EXPECT(pthread_join(thread, &result) == 0);
	EXPECT(came_back);
	EXPECT(result == PTHREAD_CANCELED);
}

/* A client that has said its version, and nothing else. */
static int connect_client(const char *path)
{
	static const uint32_t version[5] = { 1 << 16 | 1, sizeof(version), 0, 0, 1 << 16 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int client = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	EXPECT(connect(client, (struct sockaddr *)&address, sizeof(address)) == 0);
	EXPECT(write(client, version, sizeof(version)) == sizeof(version));
	return client;
}

int main(int argc, char **argv)
{
	vfu_ctx_t *ctx;
	int device, client;

	if (argc != 2)
		return 2;

	without_context();
	creation(argv[1]);

	ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, &device, VFU_DEV_TYPE_PCI);
	EXPECT(ctx != NULL);
	EXPECT(vfu_get_private(ctx) == &device);
	without_pointers(ctx);
	logging(ctx);
	EXPECT(vfu_setup_log(ctx, on_refusal, LOG_ERR) == 0);
	cancellation_that_is_on_its_way(ctx, read_nothing);
	cancellation_that_is_on_its_way(ctx, write_nothing);
	EXPECT(vfu_setup_log(ctx, NULL, LOG_ERR) == 0);
	EXPECT(vfu_realize_ctx(ctx) == 0);
	cancellations(ctx, vfu_attach_ctx);
	client = connect_client(argv[1]);
	EXPECT(vfu_attach_ctx(ctx) == 0);
	cancellations(ctx, vfu_run_ctx);
	close(client);
	FAILS(vfu_run_ctx(ctx), -1, ENOTCONN);
	vfu_destroy_ctx(ctx);
	return 0;
}
