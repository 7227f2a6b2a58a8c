/*
 * How the example device dma-engine gives its state out: the stream of
 * dma-engine-state.h, made piece by piece as it is read.
 *
 * While the device runs, only pages of memory are sent. `sent` is a copy of the
 * memory that the destination has; a page that may have changed is compared
 * with it, and sent from it. So a page that changes back costs nothing, a page
 * that changes while a slow reader is in the middle of it is whole in the stream,
 * and what the client has written through its mapping is found in the end. The
 * price is a second copy of the memory as long as a stream is open. A device with
 * much more memory would keep a strong hash for each page.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "dma-engine-device.h"
#include "dma-engine-state.h"

enum {
    PAGE = DMA_ENGINE_STATE_PAGE_SIZE,
    NR_PAGES = DMA_ENGINE_BAR2_SIZE / PAGE,
    NR_WORDS = NR_PAGES / 64,
};

struct saving {
    uint8_t *sent; /* the memory of the destination: at first, zeros */

    uint64_t to_look_at[NR_WORDS]; /* pages that may differ from it, a bit each */
    size_t word;                   /* of to_look_at, the one in turn */
    uint64_t in_turn;              /* what is left of it; it was taken out as a whole */

    /* The piece being read: a head, then, for a page, a body. */
    uint8_t head[sizeof(struct dma_engine_state_record)
                 + sizeof(struct dma_engine_state_registers)];
    size_t head_len;
    const uint8_t *body;
    size_t body_len;
    size_t pos; /* in head and body together */

    uint32_t last;     /* type of the last piece, 0: none yet */
    uint64_t checksum; /* of the pieces up to and with this one */
};

struct saving *
begin_saving(void)
{
    struct saving *saving = calloc(1, sizeof(*saving));

    if (saving == NULL) {
        return NULL;
    }
    saving->sent = mmap(NULL, DMA_ENGINE_BAR2_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (saving->sent == MAP_FAILED) {
        free(saving);
        return NULL;
    }
    saving->checksum = CHECKSUM_START;
    look_at_all_pages(saving);
    return saving;
}

void
end_saving(struct saving *saving)
{
    if (saving != NULL) {
        munmap(saving->sent, DMA_ENGINE_BAR2_SIZE);
        free(saving);
    }
}

/*
 * Pages.
 */

void
look_at_pages(struct saving *saving, size_t first, size_t last)
{
    for (size_t page = first; page <= last && page < NR_PAGES; page++) {
        saving->to_look_at[page / 64] |= UINT64_C(1) << (page % 64);
    }
}

/* Page 0 is not memory, it is made up when it is read. */
void
look_at_all_pages(struct saving *saving)
{
    look_at_pages(saving, 1, NR_PAGES - 1);
}

/*
 * Takes a page to look at. 64 pages have their turn before the next 64, so that
 * a device that writes to the same ones all the time doesn't keep the others back.
 */
static bool
take_page(struct saving *saving, size_t *page)
{
    for (size_t i = 0; saving->in_turn == 0; i++) {
        if (i == NR_WORDS) {
            return false;
        }
        saving->word = (saving->word + 1) % NR_WORDS;
        saving->in_turn = saving->to_look_at[saving->word];
        saving->to_look_at[saving->word] = 0;
    }
    *page = saving->word * 64 + __builtin_ctzll(saving->in_turn);
    saving->in_turn &= saving->in_turn - 1;
    return true;
}

/* Finds a page that the destination doesn't have, and notes that now it has. */
static bool
find_changed_page(struct engine *engine, struct saving *saving, size_t *offset)
{
    size_t page;

    while (take_page(saving, &page)) {
        *offset = page * PAGE;
        if (memcmp(saving->sent + *offset, engine->memory + *offset, PAGE) != 0) {
            memcpy(saving->sent + *offset, engine->memory + *offset, PAGE);
            return true;
        }
    }
    return false;
}

/*
 * Pieces.
 */

static void
start_piece(struct saving *saving, uint32_t type)
{
    saving->last = type;
    saving->pos = 0;
    saving->head_len = 0;
    saving->body_len = 0;
}

static void
put(struct saving *saving, const void *bytes, size_t len)
{
    memcpy(saving->head + saving->head_len, bytes, len);
    saving->head_len += len;
    saving->checksum = checksum(saving->checksum, bytes, len);
}

static void
start_record(struct saving *saving, uint32_t type, uint32_t length)
{
    struct dma_engine_state_record record = { .type = type, .length = length };

    start_piece(saving, type);
    put(saving, &record, sizeof(record));
}

static void
put_record(struct saving *saving, uint32_t type, const void *payload, uint32_t len)
{
    start_record(saving, type, len);
    put(saving, payload, len);
}

static void
put_header(struct saving *saving)
{
    struct dma_engine_state_header header = {
        .magic = DMA_ENGINE_STATE_MAGIC,
        .version = DMA_ENGINE_STATE_VERSION,
        .length = sizeof(header),
        .memory_size = DMA_ENGINE_BAR2_SIZE,
        .page_size = PAGE,
    };

    start_piece(saving, DMA_ENGINE_STATE_PAGE); /* which is what comes next */
    put(saving, &header, sizeof(header));
}

static void
put_page(struct saving *saving, uint64_t offset)
{
    start_record(saving, DMA_ENGINE_STATE_PAGE, sizeof(struct dma_engine_state_page));
    put(saving, &offset, sizeof(offset));
    saving->body = saving->sent + offset;
    saving->body_len = PAGE;
    saving->checksum = checksum(saving->checksum, saving->body, saving->body_len);
}

static void
put_registers(struct saving *saving, const struct engine_state *state)
{
    struct dma_engine_state_registers registers = {
        .control = state->control,
        .irq_status = state->irq_status,
        .irq_enable = state->irq_enable,
        .completed = state->completed,
        .error = state->error,
        .ring_size = state->ring_size,
        .ring_head = state->ring_head,
        .ring_tail = state->ring_tail,
        .ring_base = state->ring_base,
        .result = state->result,
        .desc = state->registers,
    };

    put_record(saving, DMA_ENGINE_STATE_REGISTERS, &registers, sizeof(registers));
}

static void
put_work(struct saving *saving, const struct engine_state *state)
{
    struct dma_engine_state_work work = {
        .doorbell = state->doorbell,
        .origin = state->origin,
        .progress = state->progress,
        .desc = state->current,
    };

    put_record(saving, DMA_ENGINE_STATE_WORK, &work, sizeof(work));
}

static void
put_end(struct saving *saving)
{
    struct dma_engine_state_end end;

    start_record(saving, DMA_ENGINE_STATE_END, sizeof(end));
    end.checksum = saving->checksum;
    put(saving, &end, sizeof(end));
}

/* Makes the next piece, if there is one (by now). */
static bool
next_piece(struct engine *engine, struct saving *saving)
{
    const struct engine_state *state = &engine->state;
    size_t offset;

    switch (saving->last) {
    case 0:
        put_header(saving);
        return true;
    case DMA_ENGINE_STATE_PAGE:
        if (find_changed_page(engine, saving, &offset)) {
            put_page(saving, offset);
            return true;
        }
        /* The rest is what changes all the time, and small: it is sent once. */
        if (!is_stopped(engine)) {
            return false;
        }
        put_registers(saving, state);
        return true;
    case DMA_ENGINE_STATE_REGISTERS:
        put_record(saving, DMA_ENGINE_STATE_MSIX_TABLE, state->msix_table, MSIX_TABLE_SIZE);
        return true;
    case DMA_ENGINE_STATE_MSIX_TABLE:
        put_work(saving, state);
        return true;
    case DMA_ENGINE_STATE_WORK:
        put_record(saving, DMA_ENGINE_STATE_STATISTICS, &state->stats, sizeof(state->stats));
        return true;
    case DMA_ENGINE_STATE_STATISTICS:
        put_end(saving);
        return true;
    default:
        return false;
    }
}

/* Takes bytes of a part of the piece that begins at `begin` in it. */
static size_t
take(struct saving *saving, const uint8_t *part, size_t begin, size_t len, uint8_t *buf,
     size_t count)
{
    size_t rest = begin + len - saving->pos;

    count = count < rest ? count : rest;
    memcpy(buf, part + (saving->pos - begin), count);
    saving->pos += count;
    return count;
}

/*
 * A call costs what it copies, and at most one look at each page of memory. It must
 * not come back short just to be quicker: once the device is stopped, that
 * means the end.
 */
size_t
save(struct engine *engine, struct saving *saving, uint8_t *buf, size_t count)
{
    size_t done = 0;

    while (done < count) {
        if (saving->pos < saving->head_len) {
            done += take(saving, saving->head, 0, saving->head_len, buf + done, count - done);
        } else if (saving->pos < saving->head_len + saving->body_len) {
            done += take(saving, saving->body, saving->head_len, saving->body_len, buf + done,
                         count - done);
        } else if (!next_piece(engine, saving)) {
            break;
        }
    }
    return done;
}
