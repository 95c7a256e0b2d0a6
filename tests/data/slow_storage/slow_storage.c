// SPDX-License-Identifier: Apache-2.0
//
// A file system for TensorFlow, slow://, which stands in for remote storage.
//
// slow:///folder/file is the local /folder/file, read only, and every request
// waits first: a read of a range, a stat, a listing. Requests of several
// threads wait side by side, as on real storage, because nothing is locked
// meanwhile. Opening a file sends nothing, as TensorFlow's own gs:// does.
//
// Requests are counted, and the ranges that were read are kept, so that a test
// can tell how something is read. The functions at the end are for ctypes;
// slow_storage.py compiles this file and calls them.

#define _GNU_SOURCE

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// The interface is C but for this word, which C has from 2023 on.
#define constexpr static const
#include "tensorflow/c/experimental/filesystem/filesystem_interface.h"
#undef constexpr

static const char kScheme[] = "slow";
static const char kPrefix[] = "slow://";

// Ranges that are kept, the newest ones.
#define KEPT 65536

enum { READS, STATS, LISTS, OPENS, BYTES, PEAK, NUM_COUNTS };

typedef struct {
  int64_t inode, offset, asked, got;
} Range;

static _Atomic int64_t latency_ns = 50000000;
static _Atomic int64_t counts[NUM_COUNTS];
static _Atomic int64_t waiting;
static _Atomic int64_t num_ranges;
static Range ranges[KEPT];

typedef struct {
  int fd;
  int64_t inode;
} File;

// Counts a request and waits, without a lock. Until a point in time, so that a
// signal does not end it early.
static void request(int kind) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  int64_t ns = until.tv_nsec + atomic_load(&latency_ns);
  until.tv_sec += ns / 1000000000;
  until.tv_nsec = ns % 1000000000;
  atomic_fetch_add(&counts[kind], 1);
  int64_t now = atomic_fetch_add(&waiting, 1) + 1;
  int64_t peak = atomic_load(&counts[PEAK]);
  while (now > peak &&
         !atomic_compare_exchange_weak(&counts[PEAK], &peak, now)) {
  }
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
    ;
  atomic_fetch_sub(&waiting, 1);
}

// Paths come without their scheme, but patterns with it.
static const char* local(const char* path) {
  size_t length = strlen(kPrefix);
  return strncmp(path, kPrefix, length) ? path : path + length;
}

static void* allocate(size_t size) { return malloc(size); }

static char* copy_of(const char* prefix, const char* text) {
  char* copy = allocate(strlen(prefix) + strlen(text) + 1);
  if (copy) strcat(strcpy(copy, prefix), text);
  return copy;
}

static void fs_init(TF_Filesystem* fs, TF_Status* status) {
  TF_SetStatus(status, TF_OK, "");
}

static void fs_cleanup(TF_Filesystem* fs) {}

static void fs_open(const TF_Filesystem* fs, const char* path,
                    TF_RandomAccessFile* file, TF_Status* status) {
  atomic_fetch_add(&counts[OPENS], 1);
  struct stat found;
  int fd = open(local(path), O_RDONLY | O_CLOEXEC);
  File* mine = fd < 0 ? NULL : allocate(sizeof *mine);
  if (!mine || fstat(fd, &found)) {
    TF_SetStatusFromIOError(status, errno, path);
    if (fd >= 0) close(fd);
    free(mine);
    return;
  }
  *mine = (File){fd, found.st_ino};
  file->plugin_file = mine;
  TF_SetStatus(status, TF_OK, "");
}

static void file_cleanup(TF_RandomAccessFile* file) {
  File* mine = file->plugin_file;
  close(mine->fd);
  free(mine);
}

static int64_t file_read(const TF_RandomAccessFile* file, uint64_t offset,
                         size_t n, char* buffer, TF_Status* status) {
  const File* mine = file->plugin_file;
  request(READS);
  size_t got = 0;
  while (got < n) {
    ssize_t some = pread(mine->fd, buffer + got, n - got, offset + got);
    if (some < 0 && errno == EINTR) continue;
    if (some < 0) {
      TF_SetStatusFromIOError(status, errno, "read");
      return -1;
    }
    if (some == 0) break;
    got += some;
  }
  atomic_fetch_add(&counts[BYTES], got);
  int64_t slot = atomic_fetch_add(&num_ranges, 1) % KEPT;
  ranges[slot] = (Range){mine->inode, offset, n, got};
  if (got < n)
    TF_SetStatus(status, TF_OUT_OF_RANGE, "the file ends here");
  else
    TF_SetStatus(status, TF_OK, "");
  return got;
}

static void fs_stat(const TF_Filesystem* fs, const char* path,
                    TF_FileStatistics* stats, TF_Status* status) {
  request(STATS);
  struct stat found;
  if (stat(local(path), &found)) {
    TF_SetStatusFromIOError(status, errno, path);
    return;
  }
  stats->length = found.st_size;
  stats->mtime_nsec =
      found.st_mtim.tv_sec * INT64_C(1000000000) + found.st_mtim.tv_nsec;
  stats->is_directory = S_ISDIR(found.st_mode);
  TF_SetStatus(status, TF_OK, "");
}

static void fs_path_exists(const TF_Filesystem* fs, const char* path,
                           TF_Status* status) {
  TF_FileStatistics ignored;
  fs_stat(fs, path, &ignored, status);
}

static int fs_get_children(const TF_Filesystem* fs, const char* path,
                           char*** entries, TF_Status* status) {
  request(LISTS);
  struct dirent** found;
  int count = scandir(local(path), &found, NULL, alphasort);
  if (count < 0) {
    TF_SetStatusFromIOError(status, errno, path);
    return -1;
  }
  int kept = 0;
  *entries = allocate(count * sizeof **entries);
  for (int i = 0; i < count; i++) {
    const char* name = found[i]->d_name;
    if (strcmp(name, ".") && strcmp(name, ".."))
      (*entries)[kept++] = copy_of("", name);
    free(found[i]);
  }
  free(found);
  TF_SetStatus(status, TF_OK, "");
  return kept;
}

// One request for a pattern, as storage that lists by prefix has it;
// TensorFlow's default would stat each child.
static int fs_get_matching_paths(const TF_Filesystem* fs, const char* pattern,
                                 char*** entries, TF_Status* status) {
  request(LISTS);
  glob_t found;
  int error = glob(local(pattern), 0, NULL, &found);
  if (error && error != GLOB_NOMATCH) {
    TF_SetStatus(status, TF_UNKNOWN, "the pattern cannot be matched");
    return -1;
  }
  int count = error ? 0 : found.gl_pathc;
  *entries = allocate((count + 1) * sizeof **entries);
  for (int i = 0; i < count; i++)
    (*entries)[i] = copy_of(kPrefix, found.gl_pathv[i]);
  globfree(&found);
  TF_SetStatus(status, TF_OK, "");
  return count;
}

// TensorFlow calls it once, as the library is loaded. What is left out (all
// that writes) it answers with UNIMPLEMENTED.
void TF_InitPlugin(TF_FilesystemPluginInfo* info) {
  info->plugin_memory_allocate = allocate;
  info->plugin_memory_free = free;
  info->num_schemes = 1;
  info->ops = calloc(1, sizeof *info->ops);
  TF_FilesystemPluginOps* ops = info->ops;
  TF_SetFilesystemVersionMetadata(ops);
  ops->scheme = copy_of("", kScheme);
  ops->random_access_file_ops = calloc(1, TF_RANDOM_ACCESS_FILE_OPS_SIZE);
  ops->random_access_file_ops->cleanup = file_cleanup;
  ops->random_access_file_ops->read = file_read;
  ops->filesystem_ops = calloc(1, TF_FILESYSTEM_OPS_SIZE);
  ops->filesystem_ops->init = fs_init;
  ops->filesystem_ops->cleanup = fs_cleanup;
  ops->filesystem_ops->new_random_access_file = fs_open;
  ops->filesystem_ops->path_exists = fs_path_exists;
  ops->filesystem_ops->stat = fs_stat;
  ops->filesystem_ops->get_children = fs_get_children;
  ops->filesystem_ops->get_matching_paths = fs_get_matching_paths;
}

// For Python.

void slow_storage_set_latency(double seconds) {
  atomic_store(&latency_ns, (int64_t)(seconds * 1e9));
}

void slow_storage_reset(void) {
  for (int i = 0; i < NUM_COUNTS; i++) atomic_store(&counts[i], 0);
  atomic_store(&num_ranges, 0);
}

// Copies reads, stats, lists, opens, bytes and the most requests at a time.
void slow_storage_counts(int64_t* out) {
  for (int i = 0; i < NUM_COUNTS; i++) out[i] = atomic_load(&counts[i]);
}

// Copies up to `n` ranges in the order in which they ended; returns how many
// there are. Ask when no read is in flight.
int64_t slow_storage_ranges(Range* out, int64_t n) {
  int64_t end = atomic_load(&num_ranges);
  int64_t count = end < KEPT ? end : KEPT;
  for (int64_t i = 0; i < count && i < n; i++)
    out[i] = ranges[(end - count + i) % KEPT];
  return count;
}
