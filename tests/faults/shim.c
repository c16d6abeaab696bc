/* A layer between the node and its files, loaded with LD_PRELOAD. It never is part of the product.
 *
 * It touches only what lies below the folder HILUM_FAULTS_FOLDER and does three things:
 *
 *  - Injected failures. The file HILUM_FAULTS_CONTROL is a shared `struct control`: while `remaining` is positive, each
 *    operation of `operations` fails with `error_number` and counts `remaining` down and `fired` up. A failing write
 *    writes its first half before. Reading fails as well: what lies on the disk may not come back.
 *  - The journal HILUM_FAULTS_JOURNAL tells, line by line, what was made, renamed, removed and synchronised, after it
 *    has happened. disk.py works out from it what a power cut would leave.
 *  - A mutant. With HILUM_FAULTS_LATE_SYNC_MS, a synchronisation returns at once and happens so much later, as in a
 *    program that acknowledges first and synchronises afterwards.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC_FILE = 4, RENAME = 8, SYNC_FOLDER = 16, MAKE_FOLDER = 32, READ = 64 };

struct control {
    int32_t operations;
    int32_t error_number;
    int32_t remaining;
    int32_t fired;
};

static struct control *control;
static const char *folder;
static size_t folder_length;
static int journal = -1;
static long late_sync_ms;

#define REAL(name) ((__typeof__(&name))real(&name##_found, #name))
#define DECLARE(name) static void *name##_found
DECLARE(open64);
DECLARE(read);
DECLARE(pread64);
DECLARE(write);
DECLARE(writev);
DECLARE(fsync);
DECLARE(fdatasync);
DECLARE(rename);
DECLARE(mkdir);
DECLARE(unlink);

static void *real(void **found, const char *name) {
    if (!*found) *found = dlsym(RTLD_NEXT, name);
    return *found;
}

__attribute__((constructor)) static void start(void) {
    folder = getenv("HILUM_FAULTS_FOLDER");
    const char *control_path = getenv("HILUM_FAULTS_CONTROL"), *journal_path = getenv("HILUM_FAULTS_JOURNAL");
    if (!folder || !control_path || !journal_path) return;
    folder_length = strlen(folder);
    int file = REAL(open64)(control_path, O_RDWR | O_CLOEXEC);
    if (file >= 0) {
        void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (at != MAP_FAILED) control = at;
        close(file);
    }
    journal = REAL(open64)(journal_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (getenv("HILUM_FAULTS_LATE_SYNC_MS")) late_sync_ms = atol(getenv("HILUM_FAULTS_LATE_SYNC_MS"));
    if (!control || journal < 0) {
        fprintf(stderr, "shim: cannot open its control file or journal\n");
        _exit(99);
    }
}

static int is_ours(const char *path) {
    return control && strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || !path[folder_length]);
}

/* The path of an open file of ours in `path`, or 0. */
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static void tell(const char *format, ...) {
    char line[3 * PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    int kept = errno;
    /* One write each: with O_APPEND lines of several threads and processes do not mix. */
    if (REAL(write)(journal, line, (size_t)length) != length) _exit(98);
    errno = kept;
}

/* Whether this operation is to fail; errno is then set. */
static int fails(int operation) {
    if (!(__atomic_load_n(&control->operations, __ATOMIC_SEQ_CST) & operation)) return 0;
    if (__atomic_load_n(&control->remaining, __ATOMIC_SEQ_CST) <= 0) return 0;
    if (__atomic_fetch_sub(&control->remaining, 1, __ATOMIC_SEQ_CST) <= 0) return 0;
    __atomic_fetch_add(&control->fired, 1, __ATOMIC_SEQ_CST);
    errno = control->error_number;
    return 1;
}

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list arguments;
        va_start(arguments, flags);
        mode = (mode_t)va_arg(arguments, int);
        va_end(arguments);
    }
    int creates = (flags & O_CREAT) && is_ours(path);
    if (creates && fails(OPEN)) return -1;
    int fd = REAL(open64)(path, flags, mode);
    struct stat is;
    if (creates && fd >= 0 && fstat(fd, &is) == 0) tell("made\t%lu\t%s\n", (unsigned long)is.st_ino, path);
    return fd;
}

/* Whether a read of this file is to fail. */
static int reading_fails(int fd) {
    char path[PATH_MAX];
    if (!control || !(__atomic_load_n(&control->operations, __ATOMIC_SEQ_CST) & READ)) return 0;
    return __atomic_load_n(&control->remaining, __ATOMIC_SEQ_CST) > 0 && path_of(fd, path) && fails(READ);
}

ssize_t read(int fd, void *bytes, size_t length) {
    return reading_fails(fd) ? -1 : REAL(read)(fd, bytes, length);
}

ssize_t pread64(int fd, void *bytes, size_t length, off64_t offset) {
    return reading_fails(fd) ? -1 : REAL(pread64)(fd, bytes, length, offset);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    char path[PATH_MAX];
    if (control && __atomic_load_n(&control->remaining, __ATOMIC_SEQ_CST) > 0 && path_of(fd, path) && fails(WRITE)) {
        int failure = errno;
        if (REAL(write)(fd, bytes, length / 2) < 0) return -1;
        errno = failure;
        return -1;
    }
    return REAL(write)(fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (control && __atomic_load_n(&control->remaining, __ATOMIC_SEQ_CST) > 0 && path_of(fd, path) && fails(WRITE))
        return -1;
    return REAL(writev)(fd, parts, count);
}

struct late {
    int fd;
    char path[PATH_MAX];
};

static int sync_and_tell(int fd, const char *path) {
    struct stat before;
    if (fstat(fd, &before) != 0) return -1;
    if (REAL(fsync)(fd) != 0) return -1;
    if (S_ISDIR(before.st_mode))
        tell("folder\t%lu\t%s\n", (unsigned long)before.st_ino, path);
    else
        tell("synced\t%lu\t%lld\n", (unsigned long)before.st_ino, (long long)before.st_size);
    return 0;
}

static void *sync_later(void *argument) {
    struct late *late = argument;
    usleep((useconds_t)late_sync_ms * 1000);
    sync_and_tell(late->fd, late->path);
    close(late->fd);
    free(late);
    return NULL;
}

static int synchronise(int fd, int (*unseen)(int)) {
    char path[PATH_MAX];
    struct stat is;
    if (!control || !path_of(fd, path)) return unseen(fd);
    if (fstat(fd, &is) != 0) return -1;
    if (fails(S_ISDIR(is.st_mode) ? SYNC_FOLDER : SYNC_FILE)) return -1;
    if (!late_sync_ms) return sync_and_tell(fd, path);
    struct late *late = malloc(sizeof *late);
    pthread_t thread;
    late->fd = dup(fd);
    strcpy(late->path, path);
    if (pthread_create(&thread, NULL, sync_later, late) == 0) pthread_detach(thread);
    return 0;
}

int fsync(int fd) { return synchronise(fd, REAL(fsync)); }
int fdatasync(int fd) { return synchronise(fd, REAL(fdatasync)); }

int rename(const char *from, const char *to) {
    if (!is_ours(to)) return REAL(rename)(from, to);
    if (fails(RENAME)) return -1;
    int outcome = REAL(rename)(from, to);
    if (outcome == 0) tell("renamed\t%s\t%s\n", from, to);
    return outcome;
}

int mkdir(const char *path, mode_t mode) {
    if (!is_ours(path)) return REAL(mkdir)(path, mode);
    if (fails(MAKE_FOLDER)) return -1;
    int outcome = REAL(mkdir)(path, mode);
    if (outcome == 0) tell("made\t0\t%s\n", path);
    return outcome;
}

int unlink(const char *path) {
    int outcome = REAL(unlink)(path);
    if (outcome == 0 && is_ours(path)) tell("removed\t%s\n", path);
    return outcome;
}
