/*
 * floor: the kernel work of a full container start, and nothing else.
 *
 *     floor ROOTFS COUNT CONCURRENCY [CGROUP_NAME]
 *
 * Starts COUNT containers that run /bin/true in ROOTFS, CONCURRENCY of them at
 * a time, and prints {"count", "seconds", "per_second"} as JSON.  There are no
 * logs, no state and no configuration here, so what is left is what the kernel
 * asks for one container: no runtime that does the same work can be faster,
 * and what it is slower by is its own doing.
 *
 * Needs Linux 6.15 (bind mounts taken out of a mount that is not attached).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

#define CGROUP_ROOT "/sys/fs/cgroup"

/* "unified" is the v2 mount, which clone3 itself enters; the others are v1 and
 * joined by the child.  One that does not exist on the host is left out. */
const char *const hierarchies[HIERARCHIES_MAX] = {"unified", "memory", "pids", "cpu"};

int parents[HIERARCHIES_MAX];
int blank;
static char parent_paths[HIERARCHIES_MAX][4096];
static int messages; /* stderr, which the containers do not get */
static volatile sig_atomic_t interrupted;

/* One started container. */
struct slot { int pidfd; unsigned number; };

void complain(const char *what, const char *which)
{
	dprintf(messages, "floor: %s %s: %s\n", what, which, strerror(errno));
}

static int remove_cgroups(const char *name)
{
	int result = 0;
	for (size_t i = 0; i < HIERARCHIES_MAX; i++)
		if (parents[i] >= 0 && unlinkat(parents[i], name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
			complain("rmdir cgroup in", hierarchies[i]);
			result = -1;
		}
	return result;
}

static int start(struct slot *slot, const char *rootfs)
{
	char name[16];
	int pidfd = -1, cgroup = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET,
		.pidfd = (unsigned long)&pidfd,
		.exit_signal = SIGCHLD,
	};

	snprintf(name, sizeof name, "c%u", slot->number);
	for (size_t i = 0; i < HIERARCHIES_MAX; i++)
		if (parents[i] >= 0 && mkdirat(parents[i], name, 0755) < 0) {
			complain("mkdir cgroup in", hierarchies[i]);
			return remove_cgroups(name), -1;
		}
	if (parents[UNIFIED] >= 0) {
		cgroup = openat(parents[UNIFIED], name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = cgroup;
	}
	long pid = syscall(SYS_clone3, &args, sizeof args);
	if (pid == 0)
		become_container(rootfs, name);
	if (pid < 0)
		complain("clone3", name);
	if (cgroup >= 0)
		close(cgroup);
	slot->pidfd = pidfd;
	return pid < 0 ? remove_cgroups(name), -1 : 0;
}

static int finish(struct slot *slot)
{
	char name[16];
	siginfo_t info;
	int result = 0;

	snprintf(name, sizeof name, "c%u", slot->number);
	while (waitid(P_PIDFD, slot->pidfd, &info, WEXITED) < 0)
		if (errno != EINTR) {
			complain("waitid", name);
			return -1;
		}
	close(slot->pidfd);
	if (info.si_code != CLD_EXITED || info.si_status != 0) {
		dprintf(messages, "floor: %s ended with %s %d\n", name,
		        info.si_code == CLD_EXITED ? "status" : "signal", info.si_status);
		result = -1;
	}
	return remove_cgroups(name) < 0 ? -1 : result;
}

/* Keep CONCURRENCY containers in flight until COUNT are done. */
static int run(const char *rootfs, unsigned count, unsigned concurrency)
{
	struct slot *slots = calloc(concurrency, sizeof *slots);
	struct pollfd *polls = calloc(concurrency, sizeof *polls);
	unsigned started = 0, live = 0;
	int failed = !slots || !polls;

	while (live || (!failed && started < count)) {
		while (!failed && live < concurrency && started < count) {
			slots[live].number = started++;
			if (start(&slots[live], rootfs) < 0)
				failed = 1;
			else
				polls[live] = (struct pollfd){slots[live].pidfd, POLLIN, 0}, live++;
		}
		if (poll(polls, live, -1) < 0 && errno != EINTR)
			failed = 1;
		if (interrupted) {
			failed = 1;
			for (unsigned i = 0; i < live; i++)
				syscall(SYS_pidfd_send_signal, slots[i].pidfd, SIGKILL, NULL, 0);
		}
		for (unsigned i = live; i-- > 0;) {
			if (!polls[i].revents && !interrupted)
				continue;
			failed |= finish(&slots[i]) < 0;
			slots[i] = slots[--live];
			polls[i] = polls[live];
		}
	}
	free(slots);
	free(polls);
	return failed ? -1 : 0;
}

static int make_blank(void)
{
	int home = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	int here = open(".", O_PATH | O_CLOEXEC), context = -1, root = -1;

	if (home < 0 || here < 0 || unshare(CLONE_NEWNS) < 0
	    || (blank = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC)) < 0
	    || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0
	    || (context = fsopen("tmpfs", FSOPEN_CLOEXEC)) < 0
	    || fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0
	    || (root = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)) < 0
	    || move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) < 0
	    || fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0
	    || umount2(".", MNT_DETACH) < 0 || setns(home, CLONE_NEWNS) < 0 || fchdir(here) < 0) {
		complain("make", "the blank mount namespace");
		return -1;
	}
	close(home);
	close(here);
	close(context);
	close(root);
	return 0;
}

static int make_parents(const char *cgroup_name)
{
	for (size_t i = 0; i < HIERARCHIES_MAX; i++)
		parents[i] = -1;
	for (size_t i = 0; i < HIERARCHIES_MAX && hierarchies[i]; i++) {
		char *path = parent_paths[i];
		struct statfs about;
		size_t size = sizeof parent_paths[i];
		/* On a host with nothing but v2 its mount is CGROUP_ROOT itself. */
		int alone = i == UNIFIED && statfs(CGROUP_ROOT, &about) == 0
		            && about.f_type == CGROUP2_SUPER_MAGIC;
		snprintf(path, size, CGROUP_ROOT "/%s", alone ? "." : hierarchies[i]);
		if (statfs(path, &about) < 0
		    || about.f_type != (i == UNIFIED ? CGROUP2_SUPER_MAGIC : CGROUP_SUPER_MAGIC))
			continue;
		snprintf(path + strlen(path), size - strlen(path), "/%s", cgroup_name);
		if (mkdir(path, 0755) < 0) {
			complain("mkdir", path);
			return -1;
		}
		parents[i] = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	return 0;
}

static int remove_parents(void)
{
	int result = 0;
	for (size_t i = 0; i < HIERARCHIES_MAX; i++)
		if (parents[i] >= 0 && rmdir(parent_paths[i]) < 0) {
			complain("rmdir", parent_paths[i]);
			result = -1;
		}
	return result;
}

static void interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

int main(int argc, char **argv)
{
	char default_name[32];
	struct timespec begin, end;
	struct sigaction action = {.sa_handler = interrupt};

	messages = fcntl(2, F_DUPFD_CLOEXEC, 10);
	int output = fcntl(1, F_DUPFD_CLOEXEC, 10);
	int count = argc > 2 ? atoi(argv[2]) : 0, concurrency = argc > 3 ? atoi(argv[3]) : 0;
	if (count < 1 || concurrency < 1 || argc > 5) {
		dprintf(messages, "usage: floor ROOTFS COUNT CONCURRENCY [CGROUP_NAME]\n");
		return 2;
	}
	/* Containers inherit /dev/null for all three, at no cost per container. */
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3; i++)
		if (dup2(null, i) < 0)
			return complain("open", "/dev/null"), 1;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	snprintf(default_name, sizeof default_name, "craterun-floor-%d", getpid());

	int failed = make_blank() < 0 || make_parents(argc > 4 ? argv[4] : default_name) < 0;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	failed = failed || run(argv[1], count, concurrency) < 0;
	clock_gettime(CLOCK_MONOTONIC, &end);
	failed |= remove_parents() < 0;
	if (failed)
		return 1;
	double seconds = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9;
	dprintf(output, "{\"count\": %d, \"seconds\": %.6f, \"per_second\": %.2f}\n", count, seconds,
	        count / seconds);
	return 0;
}
