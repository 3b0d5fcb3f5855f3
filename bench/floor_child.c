/*
 * The container's half of floor: from the first instruction of the new process
 * to /bin/true, in the order a runtime has to do it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "floor.h"

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* The capabilities podman gives a container. */
static const int CAPABILITIES[] = {
	CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_NET_BIND_SERVICE,
	CAP_SETFCAP, CAP_SETGID, CAP_SETPCAP, CAP_SETUID, CAP_SYS_CHROOT,
};

/* What runc hides and protects by default; absent paths are skipped. */
static const char *const READ_ONLY[] = {
	"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger",
};
static const char *const MASKED_FILES[] = {
	"proc/kcore", "proc/keys", "proc/latency_stats",
	"proc/timer_list", "proc/timer_stats", "proc/sched_debug",
};
static const char *const MASKED_DIRECTORIES[] = {
	"proc/acpi", "proc/asound", "proc/scsi", "sys/firmware",
};

static const struct { const char *name, *text; } FILES[] = {
	{"hosts", "127.0.0.1 localhost\n::1 localhost\n"},
	{"hostname", "floor\n"},
	{"resolv.conf", "nameserver 127.0.0.1\n"},
};
static const struct { const char *name; int minor, major; } NODES[] = {
	{"null", 3, 1}, {"zero", 5, 1}, {"full", 7, 1},
	{"random", 8, 1}, {"urandom", 9, 1}, {"tty", 0, 5},
};
static const char *const LINKS[][2] = {
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
};

/* In the child: a failed step ends it, and the parent sees the status. */
static int must(int result, const char *what, const char *which)
{
	if (result < 0) {
		complain(what, which);
		_exit(126);
	}
	return result;
}

static int open_filesystem(const char *type)
{
	return must(fsopen(type, FSOPEN_CLOEXEC), "fsopen", type);
}

static void set_option(int context, const char *key, const char *value)
{
	must(fsconfig(context, FSCONFIG_SET_STRING, key, value, 0), "fsconfig", key);
}

/* Make the configured filesystem, and give its mount, attached nowhere. */
static int make_mount(int context, unsigned attributes)
{
	must(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "fsconfig", "create");
	int mount_fd = must(fsmount(context, FSMOUNT_CLOEXEC, attributes), "fsmount", "");
	close(context);
	return mount_fd;
}

static void attach(int mount_fd, const char *target)
{
	must(move_mount(mount_fd, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH),
	     "move_mount", target);
}

static int clone_mount(int directory, const char *path, unsigned flags)
{
	return must(open_tree(directory, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags),
	            "open_tree", path);
}

static void bind_mount(int directory, const char *path, const char *target)
{
	int tree = clone_mount(directory, path, 0);
	attach(tree, target);
	close(tree);
}

static int exists(const char *path)
{
	return faccessat(AT_FDCWD, path, F_OK, 0) == 0;
}

static void join_cgroups(const char *name)
{
	char path[32];
	snprintf(path, sizeof path, "%s/tasks", name);
	for (size_t i = 0; i < HIERARCHIES_MAX; i++) {
		if (i == UNIFIED || parents[i] < 0)
			continue;
		int fd = must(openat(parents[i], path, O_WRONLY | O_CLOEXEC), "open tasks of",
		              hierarchies[i]);
		/* "0" to `tasks` moves only the writing thread, which spares the
		 * kernel the lock (and the RCU grace period) over all threads. */
		must(write(fd, "0", 1) == 1 ? 0 : -1, "join", hierarchies[i]);
		close(fd);
	}
	must(unshare(CLONE_NEWCGROUP), "unshare", "cgroup");
}

static void enter_rootfs(const char *rootfs)
{
	struct mount_attr private = {.propagation = MS_PRIVATE};
	int tree = clone_mount(AT_FDCWD, rootfs, AT_RECURSIVE);
	must(mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &private, sizeof private),
	     "make private", rootfs);
	must(setns(blank, CLONE_NEWNS), "enter", "the blank mount namespace");
	must(unshare(CLONE_NEWNS), "unshare", "mounts");
	attach(tree, "/");
	must(fchdir(tree), "fchdir", rootfs);
	close(tree);
}

static void mount_files(void)
{
	int directory = make_mount(open_filesystem("tmpfs"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	for (size_t i = 0; i < LENGTH(FILES); i++) {
		char target[32];
		ssize_t length = strlen(FILES[i].text);
		snprintf(target, sizeof target, "etc/%s", FILES[i].name);
		int fd = must(openat(directory, FILES[i].name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644),
		              "create", target);
		must(write(fd, FILES[i].text, length) == length ? 0 : -1, "write", target);
		close(fd);
		if (exists(target))
			bind_mount(directory, FILES[i].name, target);
	}
	close(directory);
}

static void mount_dev(void)
{
	int context = open_filesystem("tmpfs");
	set_option(context, "mode", "755");
	int dev = make_mount(context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME);
	for (size_t i = 0; i < LENGTH(NODES); i++)
		must(mknodat(dev, NODES[i].name, S_IFCHR | 0666,
		             makedev(NODES[i].major, NODES[i].minor)), "mknod", NODES[i].name);
	for (size_t i = 0; i < LENGTH(LINKS); i++)
		must(symlinkat(LINKS[i][0], dev, LINKS[i][1]), "symlink", LINKS[i][1]);
	must(mkdirat(dev, "pts", 0755), "mkdir", "dev/pts");
	must(mkdirat(dev, "shm", 01777), "mkdir", "dev/shm");
	must(mkdirat(dev, "mqueue", 0755), "mkdir", "dev/mqueue");
	attach(dev, "dev");
	close(dev);

	context = open_filesystem("devpts");
	must(fsconfig(context, FSCONFIG_SET_FLAG, "newinstance", NULL, 0), "fsconfig", "newinstance");
	set_option(context, "ptmxmode", "0666");
	set_option(context, "mode", "620");
	set_option(context, "gid", "5");
	attach(make_mount(context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), "dev/pts");

	context = open_filesystem("tmpfs");
	set_option(context, "mode", "1777");
	set_option(context, "size", "64m");
	attach(make_mount(context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV),
	       "dev/shm");
	attach(make_mount(open_filesystem("mqueue"),
	                  MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV), "dev/mqueue");
}

static void protect(void)
{
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
	const char *first = NULL;

	for (size_t i = 0; i < LENGTH(READ_ONLY); i++) {
		if (!exists(READ_ONLY[i]))
			continue;
		int tree = clone_mount(AT_FDCWD, READ_ONLY[i], AT_RECURSIVE);
		must(mount_setattr(tree, "", AT_EMPTY_PATH, &read_only, sizeof read_only),
		     "mount_setattr", READ_ONLY[i]);
		attach(tree, READ_ONLY[i]);
		close(tree);
	}
	for (size_t i = 0; i < LENGTH(MASKED_FILES); i++)
		if (exists(MASKED_FILES[i]))
			bind_mount(AT_FDCWD, "dev/null", MASKED_FILES[i]);
	/* One empty tmpfs is enough for all directories: it is read-only. */
	for (size_t i = 0; i < LENGTH(MASKED_DIRECTORIES); i++) {
		if (!exists(MASKED_DIRECTORIES[i]))
			continue;
		if (first) {
			bind_mount(AT_FDCWD, first, MASKED_DIRECTORIES[i]);
			continue;
		}
		first = MASKED_DIRECTORIES[i];
		int context = open_filesystem("tmpfs");
		must(fsconfig(context, FSCONFIG_SET_FLAG, "ro", NULL, 0), "fsconfig", "ro");
		attach(make_mount(context, MOUNT_ATTR_RDONLY), first);
	}
}

static void mount_all(void)
{
	unsigned plain = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV;

	mount_files();
	attach(make_mount(open_filesystem("proc"), plain), "proc");
	mount_dev();
	attach(make_mount(open_filesystem("sysfs"), plain | MOUNT_ATTR_RDONLY), "sys");
	protect();
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket", "");
	must(ioctl(fd, SIOCSIFFLAGS, &request), "bring up", "lo");
	close(fd);
}

static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};
	unsigned long long kept = 0;

	for (size_t i = 0; i < LENGTH(CAPABILITIES); i++)
		kept |= 1ULL << CAPABILITIES[i];
	for (int i = 0; i < 64; i++) {
		if (kept >> i & 1)
			continue;
		if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) == 0)
			continue;
		if (errno == EINVAL) /* beyond the last one this kernel knows */
			break;
		must(-1, "drop", "capability");
	}
	for (int i = 0; i < 2; i++)
		data[i].permitted = data[i].effective = kept >> 32 * i;
	must(syscall(SYS_capset, &header, data), "capset", "");
	must(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL), "keyctl", "join session");
}

_Noreturn void become_container(const char *rootfs, const char *name)
{
	char *const argv[] = {"/bin/true", NULL};
	char *const envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};

	must(setsid(), "setsid", "");
	umask(0);
	join_cgroups(name);
	enter_rootfs(rootfs);
	mount_all();
	must(chroot("."), "chroot", rootfs);
	must(chdir("/"), "chdir", "/");
	umask(022);
	must(sethostname(name, strlen(name)), "sethostname", name);
	loopback_up();
	drop_capabilities();
	execve(argv[0], argv, envp);
	complain("exec", argv[0]);
	_exit(127);
}
