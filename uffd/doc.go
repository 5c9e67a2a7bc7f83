// Package uffd is the typed form of the kernel calls a user-space pager is
// made of: userfaultfd(2) and its ioctls, PAGEMAP_SCAN, process_madvise(2).
//
// It knows the kernel and nothing of pages, budgets or goroutines, and it is
// the only package of the project that knows an ioctl number. Most callers
// [Open] a descriptor with [APISigbus], [FD.Register] a mapping, answer its
// faults with [FD.Copy] and take pages away again with [Zap].
//
// Every call exists twice where a fault handler needs it. The ordinary form is
// a method that may block, tells the Go scheduler about it, retries what the
// kernel wants retried and returns an error value. The raw form (RawCopy,
// RawZap, …) is one system call after another on plain integers: it allocates
// nothing, needs neither a P nor a g, and may run in a signal handler.
//
// Every kernel feature is a value ([Feature]) that is probed once, by doing
// the thing, and that names the kernel it came with. The environment variable
// UFFDPAGER_FEATURES takes features away again, so that the process behaves
// like one on an older or stricter kernel: see [MaskEnv].
//
// Two traps of lifetime. Closing a descriptor unregisters its ranges: threads
// that touch missing pages afterwards get silent zero pages, so make the range
// inaccessible first. And only whole pages that nobody else installs may be
// answered: COPY over a range that is partly present stops where the first
// present page is.
//
// Off Linux everything compiles and returns [ErrNotSupported].
package uffd
