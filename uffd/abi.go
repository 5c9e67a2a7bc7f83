package uffd

// The kernel's side of the interface: numbers and layouts of
// include/uapi/linux/userfaultfd.h and include/uapi/linux/fs.h. They are part
// of the kernel's stable ABI and the same on every architecture Go supports
// except that mips, ppc64 and sparc encode the direction bits of an ioctl
// number differently; those are not supported.

const (
	ioctlUffd    = 0xaa
	ioctlPagemap = 'f'
	dirRead      = 2 << 30
	dirReadWrite = 3 << 30

	apiVersion = 0xaa

	ioctlNew          = ioctlUffd << 8 // _IO: on /dev/userfaultfd
	ioctlAPI          = dirReadWrite | sizeAPI<<16 | ioctlUffd<<8 | 0x3f
	ioctlRegister     = dirReadWrite | sizeRegister<<16 | ioctlUffd<<8 | 0x00
	ioctlUnregister   = dirRead | sizeRange<<16 | ioctlUffd<<8 | 0x01
	ioctlWake         = dirRead | sizeRange<<16 | ioctlUffd<<8 | 0x02
	ioctlCopy         = dirReadWrite | sizeCopy<<16 | ioctlUffd<<8 | 0x03
	ioctlZeropage     = dirReadWrite | sizeZeropage<<16 | ioctlUffd<<8 | 0x04
	ioctlMove         = dirReadWrite | sizeMove<<16 | ioctlUffd<<8 | 0x05
	ioctlWriteprotect = dirReadWrite | sizeWriteprotect<<16 | ioctlUffd<<8 | 0x06
	ioctlPoison       = dirReadWrite | sizePoison<<16 | ioctlUffd<<8 | 0x08
	ioctlPagemapScan  = dirReadWrite | sizePagemapScan<<16 | ioctlPagemap<<8 | 16

	sizeAPI          = 24
	sizeRange        = 16
	sizeRegister     = 32
	sizeCopy         = 40
	sizeZeropage     = 32
	sizeMove         = 40
	sizeWriteprotect = 24
	sizePoison       = 32
	sizePagemapScan  = 96
)

// kernelRange is struct uffdio_range.
type kernelRange struct{ start, len uint64 }

// rest is the range behind its first done bytes.
func (r kernelRange) rest(done uintptr) kernelRange {
	return kernelRange{r.start + uint64(done), r.len - uint64(done)}
}

// argAPI is struct uffdio_api.
type argAPI struct{ api, features, ioctls uint64 }

// argRegister is struct uffdio_register.
type argRegister struct {
	r      kernelRange
	mode   uint64
	ioctls uint64 // out
}

// argCopy is struct uffdio_copy, and struct uffdio_move, which differs in the
// name of the last field only.
type argCopy struct {
	dst, src, len uint64
	mode          uint64
	done          int64 // out: bytes, or a negated errno; not written by every failure
}

// rest is what is left to do after done bytes.
func (a argCopy) rest(done uintptr) argCopy {
	return argCopy{dst: a.dst + uint64(done), src: a.src + uint64(done), len: a.len - uint64(done), mode: a.mode}
}

// argZeropage is struct uffdio_zeropage, and struct uffdio_poison.
type argZeropage struct {
	r    kernelRange
	mode uint64
	done int64 // out, as in argCopy
}

// argWriteprotect is struct uffdio_writeprotect. It has no out field: the
// kernel does not say how far it came.
type argWriteprotect struct {
	r    kernelRange
	mode uint64
}

// argPagemapScan is struct pm_scan_arg.
type argPagemapScan struct {
	size, flags      uint64
	start, end       uint64
	walkEnd          uint64   // out
	vec              *PageRun // 64 bits: see Pagemap.Scan
	vecLen           uint64
	maxPages         uint64
	categoryInverted uint64
	categoryMask     uint64
	categoryAnyof    uint64
	returnMask       uint64
}

// API is the set of features of a descriptor that userfaultfd's handshake
// (UFFDIO_API) grants, with the kernel's own bit values.
type API uint64

// The features of the handshake that the pager and its tests use. The event
// features (fork, remap, remove, unmap) are left out on purpose: within the
// process that serves the faults they deadlock.
const (
	APIWriteProtect  API = 1 << 0  // UFFD_FEATURE_PAGEFAULT_FLAG_WP, Linux 5.7
	APISigbus        API = 1 << 7  // UFFD_FEATURE_SIGBUS, 4.14: a fault is SIGBUS (BUS_ADRERR) to the faulting thread instead of a message
	APIWPShmem       API = 1 << 12 // UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 5.19
	APIWPUnpopulated API = 1 << 13 // UFFD_FEATURE_WP_UNPOPULATED, 6.4: WriteProtect also marks missing anonymous pages
	APIPoison        API = 1 << 14 // UFFD_FEATURE_POISON, 6.6
	APIWPAsync       API = 1 << 15 // UFFD_FEATURE_WP_ASYNC, 6.7: write-protect faults resolve themselves; excludes seeing them
	APIMove          API = 1 << 16 // UFFD_FEATURE_MOVE, 6.8
)

// Modes of Register: which faults of the range are the descriptor's.
const (
	RegisterMissing uint64 = 1 << 0 // touches of pages that are not there
	RegisterWP      uint64 = 1 << 1 // writes to pages that are write-protected; needs FeatureWriteProtect
)

// Modes of Copy, ZeroPage, WriteProtect, Move and Poison. DontWake matters for
// descriptors in message mode only: in SIGBUS mode nobody sleeps in the kernel.
const (
	CopyDontWake         uint64 = 1 << 0
	CopyWP               uint64 = 1 << 1 // install write-protected, with no moment in which a write could slip in
	ZeroDontWake         uint64 = 1 << 0
	ProtectWP            uint64 = 1 << 0 // protect; without it WriteProtect takes the protection away
	ProtectDontWake      uint64 = 1 << 1 // only without ProtectWP
	MoveDontWake         uint64 = 1 << 0
	MoveAllowSourceHoles uint64 = 1 << 1 // skip source pages that are missing instead of failing with ENOENT
	PoisonDontWake       uint64 = 1 << 0
)

// Range is a stretch of addresses, in bytes. It has the layout of struct iovec,
// so that a slice of them is what process_madvise(2) takes, and holds no
// pointer, so that the garbage collector does not care what it names.
type Range struct{ Addr, Len uintptr }
