/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checks the headers against interface.inc and extension.inc, as C and as C++: most of it when it
 * is compiled, bit-fields when it is run. With WITH_LIBRARY it refers to every
 * function, too, and so is to be linked with the library.
 */
#include <libvfio-user.h>
#include <libvfio-user-ext.h>

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
#include <type_traits>
#define CHECK(what)         static_assert(what, #what);
#define SAME(a, b)          static_assert(std::is_same<a, b>::value, #a " is " #b);
#define TYPE_OF(expression) decltype(expression)
#define MEMBER_TYPE(t, m)   std::remove_reference<decltype((((t *)0)->m))>::type
#define IS_ENUMERATOR(t, n) static_assert(std::is_convertible<decltype(n), t>::value, #n " is a " #t);
#define SUB_REGION          vfio_user_region_io_fds_reply::sub_region
#else
#define CHECK(what)         __extension__ _Static_assert(what, #what);
#define SAME(a, b)          CHECK(__builtin_types_compatible_p(a, b))
#define TYPE_OF(expression) __typeof__(expression)
#define MEMBER_TYPE(t, m)   __typeof__(((t *)0)->m)
#define IS_ENUMERATOR(t, n)
#define SUB_REGION          union sub_region
#endif

#define CONSTANT(name, value)            CHECK((name) == (value)) SAME(TYPE_OF(name), int)
#define ENUMERATOR(type, name, value)    CHECK((int)(name) == (value)) IS_ENUMERATOR(type, name)
#define OPAQUE(name, type)               SAME(name *, type *)
#define TYPE(name, type)                 SAME(name, type)
#define SIZE(type, size, alignment)      CHECK(sizeof(type) == (size) && __alignof__(type) == (alignment))
#define MEMBER(type, member, at, its)    CHECK(offsetof(type, member) == (at)) SAME(MEMBER_TYPE(type, member), its)
#define PART(type, member, at, size)     CHECK(offsetof(type, member) == (at) && sizeof(((type *)0)->member) == (size))
#define FLEXIBLE(type, member, at)       CHECK(offsetof(type, member) == (at))
#define BITS(type, member, first, width)
#define FUNCTION(name, type)             SAME(TYPE_OF(name), type)
#include "interface.inc"
#include "extension.inc"
#undef CONSTANT
#undef ENUMERATOR
#undef OPAQUE
#undef TYPE
#undef SIZE
#undef MEMBER
#undef PART
#undef FLEXIBLE
#undef BITS
#undef FUNCTION

static int failures;

/* Says whether exactly these bits are set in a structure. */
static void look(const void *structure, size_t size, size_t first, size_t width, const char *name)
{
	const unsigned char *bytes = (const unsigned char *)structure;
	size_t i;

	for (i = 0; i < size * 8; i++) {
		int should = i >= first && i < first + width;
		int is = (bytes[i / 8] >> (i % 8)) & 1;

		if (should != is) {
			printf("%s: bit %zu is %d\n", name, i, is);
			failures++;
		}
	}
}

#ifdef WITH_LIBRARY
static void (*volatile function)(void);
#endif

int main(void)
{
#define CONSTANT(name, value)
#define ENUMERATOR(type, name, value)
#define OPAQUE(name, type)
#define TYPE(name, type)
#define SIZE(type, size, alignment)
#define MEMBER(type, member, at, its)
#define PART(type, member, at, size)
#define FLEXIBLE(type, member, at)
#define BITS(type, member, first, width) { \
		type structure; \
		memset(&structure, 0, sizeof(structure)); \
		structure.member = (1ULL << (width)) - 1; \
		look(&structure, sizeof(structure), first, width, #type " " #member); \
	}
#ifdef WITH_LIBRARY
#define FUNCTION(name, type) function = (void (*)(void))name;
#else
#define FUNCTION(name, type)
#endif
#include "interface.inc"
#include "extension.inc"

#ifdef WITH_LIBRARY
	/* sizeof(dma_sg_t), which programs know by this function only. */
	if (dma_sg_size() != 40) {
		printf("dma_sg_size() is %zu\n", dma_sg_size());
		failures++;
	}
#endif
	return failures != 0;
}
