/* A layer below Postgres, loaded with LD_PRELOAD. It never is part of the product.
 *
 * Below SHADOW_COPY it keeps what a disk would hold of SHADOW_FOLDER if the power were cut now: names at once, as a
 * journalling file system may have them, and of each file the bytes as of its last completed synchronisation. A file that
 * was never synchronised is empty there. A synchronisation returns when its copy is in place.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static const char *folder, *copy, *lock_path;
static size_t folder_length;

#define REAL(name) ((__typeof__(&name))real(&name##_found, #name))
#define DECLARE(name) static void *name##_found
DECLARE(open);
DECLARE(open64);
DECLARE(fsync);
DECLARE(fdatasync);
DECLARE(rename);
DECLARE(link);
DECLARE(unlink);
DECLARE(mkdir);
DECLARE(rmdir);

static void *real(void **found, const char *name) {
    if (!*found) *found = dlsym(RTLD_NEXT, name);
    return *found;
}

/* Kept: Postgres writes the title of its processes over its environment. */
static const char *of_environment(const char *name) {
    const char *value = getenv(name);
    return value ? strdup(value) : NULL;
}

__attribute__((constructor)) static void start(void) {
    folder = of_environment("SHADOW_FOLDER");
    copy = of_environment("SHADOW_COPY");
    lock_path = of_environment("SHADOW_LOCK");
    if (folder) folder_length = strlen(folder);
}

static void give_up(const char *what, const char *path) {
    fprintf(stderr, "shadow: cannot %s %s: %s\n", what, path, strerror(errno));
    _exit(97);
}

/* The place of `path` in the copy, or 0 where it is not below the folder. Postgres names files from its folder on. */
static int shadow_of(const char *path, char *place) {
    if (!folder || !copy) return 0;
    char whole[2 * PATH_MAX];
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, strncmp(path, "./", 2) == 0 ? path + 2 : path);
    }
    if (strncmp(whole, folder, folder_length) != 0 || whole[folder_length] != '/') return 0;
    return snprintf(place, PATH_MAX, "%s%s", copy, whole + folder_length) < PATH_MAX;
}

static void make_empty(const char *path, mode_t mode) {
    char place[PATH_MAX];
    if (!shadow_of(path, place)) return;
    int kept = errno, fd = REAL(open)(place, O_WRONLY | O_CREAT | O_CLOEXEC, mode);
    if (fd < 0) give_up("make", place);
    close(fd);
    errno = kept;
}

#define OPEN(name)                                              \
    int name(const char *path, int flags, ...) {                \
        mode_t mode = 0;                                        \
        if (flags & O_CREAT) {                                  \
            va_list arguments;                                  \
            va_start(arguments, flags);                         \
            mode = (mode_t)va_arg(arguments, int);              \
            va_end(arguments);                                  \
        }                                                       \
        int fd = REAL(name)(path, flags, mode);                 \
        if (fd >= 0 && (flags & O_CREAT)) make_empty(path, mode); \
        return fd;                                              \
    }

OPEN(open)
OPEN(open64)

/* Copies the whole file. One at a time in all processes, or an older copy could replace a newer one. */
static void keep(int fd) {
    char link_path[64], path[PATH_MAX], place[PATH_MAX], beside[PATH_MAX + 32];
    snprintf(link_path, sizeof link_path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link_path, path, sizeof path - 1);
    struct stat is;
    if (length < 0 || fstat(fd, &is) != 0 || !S_ISREG(is.st_mode)) return;
    path[length] = 0;
    /* One that was removed is in no folder. */
    if (is.st_nlink == 0 || !shadow_of(path, place)) return;
    int lock = REAL(open)(lock_path, O_RDWR | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX) != 0) give_up("lock", lock_path);
    snprintf(beside, sizeof beside, "%s.shadow", place);
    int from = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (from >= 0) {
        int to = REAL(open)(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, is.st_mode & 07777);
        if (to < 0) give_up("make", beside);
        ssize_t copied;
        while ((copied = sendfile(to, from, NULL, 1 << 24)) > 0) {}
        if (copied < 0) give_up("copy", path);
        close(to);
        close(from);
        if (REAL(rename)(beside, place) != 0) give_up("keep", place);
    }
    close(lock);
}

static int synchronise(int fd, int (*unseen)(int)) {
    int outcome = unseen(fd), kept = errno;
    if (outcome == 0) keep(fd);
    errno = kept;
    return outcome;
}

int fsync(int fd) { return synchronise(fd, REAL(fsync)); }
int fdatasync(int fd) { return synchronise(fd, REAL(fdatasync)); }

/* Does the same to the names in the copy; what is not there yet is no error. */
#define NAMES(call, shadow_call)              \
    int outcome = call, kept = errno;         \
    if (outcome == 0) shadow_call;            \
    errno = kept;                             \
    return outcome

static void rename_shadow(const char *from, const char *to) {
    char source[PATH_MAX], target[PATH_MAX];
    if (shadow_of(from, source) && shadow_of(to, target)) REAL(rename)(source, target);
}

static void link_shadow(const char *from, const char *to) {
    char source[PATH_MAX], target[PATH_MAX];
    if (shadow_of(from, source) && shadow_of(to, target)) REAL(link)(source, target);
}

static void apply(const char *path, int (*call)(const char *)) {
    char place[PATH_MAX];
    if (shadow_of(path, place)) call(place);
}

static void mkdir_shadow(const char *path, mode_t mode) {
    char place[PATH_MAX];
    if (shadow_of(path, place)) REAL(mkdir)(place, mode);
}

int rename(const char *from, const char *to) { NAMES(REAL(rename)(from, to), rename_shadow(from, to)); }
int link(const char *from, const char *to) { NAMES(REAL(link)(from, to), link_shadow(from, to)); }
int unlink(const char *path) { NAMES(REAL(unlink)(path), apply(path, REAL(unlink))); }
int rmdir(const char *path) { NAMES(REAL(rmdir)(path), apply(path, REAL(rmdir))); }
int mkdir(const char *path, mode_t mode) { NAMES(REAL(mkdir)(path, mode), mkdir_shadow(path, mode)); }
