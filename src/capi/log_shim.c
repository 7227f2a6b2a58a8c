/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The body of vfu_log(), whose arguments only C can take apart. With VFU_LOG_IN_C it
 * is that function; without, vfu_log() itself is a jump to here, from the Rust side,
 * which is what exports it.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Longest message, in bytes, without its NUL; log.rs knows it too. */
#define MAX_MESSAGE 8191

#define INTERNAL __attribute__((visibility("hidden")))

/* In log.rs. Declared hidden here, so that the shared library does not export them. */
INTERNAL bool vfu_log_is_enabled(void *vfu_ctx, int level);
INTERNAL void vfu_log_text(void *vfu_ctx, int level, char *text, bool cut);

#ifndef VFU_LOG_IN_C
#define vfu_log vfu_log_shim
INTERNAL
#endif
void vfu_log(void *vfu_ctx, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

void vfu_log(void *vfu_ctx, int level, const char *fmt, ...)
{
	char text[MAX_MESSAGE + 1];
	int saved = errno;
	va_list args;
	int length;

	if (fmt == NULL || !vfu_log_is_enabled(vfu_ctx, level)) {
		errno = saved;
		return;
	}

	errno = saved; /* for %m */
	va_start(args, fmt);
	length = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);

	if (length >= 0)
		vfu_log_text(vfu_ctx, level, text, length > MAX_MESSAGE);
	errno = saved;
}
