package pager

import (
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/pager/writeback"
	"github.com/uffdpager/uffdpager/prefetch"
)

// FrameSize is the unit of the budget and the smallest page, in bytes.
const FrameSize = 4096

// MaxPageSize is the largest page of a region, in bytes.
const MaxPageSize = 2 << 20

// MinBudget is the smallest budget, in bytes.
const MinBudget = 4 * FrameSize

// Options configure a Pager. The zero value works.
type Options struct {
	// Budget is the most memory, in bytes, that resident pages and pages on
	// their way in may take together; rounded down to FrameSize. 0: the
	// smaller of a quarter of the machine's memory and half of the cgroup's
	// limit.
	Budget int64

	// QueueDepth is the most I/Os in flight, at most aio.MaxDepth. 0: 256. Reads are bounded in bytes as well, by
	// an eighth of the budget (at least 16 MiB, at most 64).
	QueueDepth int

	// Engine does the I/O. 0 (aio.Auto): the best that works here.
	Engine aio.Kind

	// Park says how raw access waits. The environment variable
	// UFFDPAGER_PARK overrides it.
	Park coro.Mode

	// EvictBatch is how many clean pages leave with one system call. 0: 64,
	// less under small budgets; at most 256. 1 makes the counters exact.
	EvictBatch int

	// StallLimit is how long a request waits for pinned pages while nothing
	// at all is unpinned, before it fails with ErrBudget instead of waiting
	// for ever; it waits longer for a device that does nothing either. So it is
	// where a RegionOptions.Evict lets no page leave. 0: 1 s.
	StallLimit time.Duration

	// WedgeLimit is how long a fault, an I/O, a pin or a call of a hook may take
	// before it is named: in Stats.Wedged, to EventListener.Wedged and in the
	// log. 0: 10 s; negative: never.
	WedgeLimit time.Duration

	// Logger receives what is worth a line: start, degraded modes, I/O
	// errors. nil: silent.
	Logger *zap.Logger

	// Events is told of what happens. nil: nobody.
	Events *EventListener
}

// Durability is what happens to writes between calls of Sync.
type Durability uint8

const (
	// InPlace: pages may reach the store at any time after they were written;
	// Sync makes them durable.
	InPlace Durability = iota
	// Atomic: nothing uncommitted reaches the store in place.
	Atomic
)

// OnReadError is what raw access does when a page cannot be read.
type OnReadError uint8

const (
	// Fault raises a Go fault at the access (see Guard).
	Fault OnReadError = iota
	// Wait retries until the read succeeds or the region is closed.
	Wait
)

// RegionOptions configure Map. The zero value works.
type RegionOptions struct {
	// ReadOnly maps the store for reading: writes are refused. Implied by a
	// store that is not writable, unless Private. What cannot be stored to is
	// cheaper to Acquire (see Pin), and may have HugePages.
	ReadOnly bool

	// Private is copy on write: what is written is seen by this region alone
	// and forgotten at Close. Changed pages that must leave go to an unlinked
	// temporary file in SpillDir, of which at most SpillLimit bytes, rounded
	// down to pages, are ever written. When it is full, changed pages stay in
	// memory; when no more of these may be there, writing is ErrBudget after
	// Options.StallLimit (by raw memory: a Go fault with it).
	Private    bool
	SpillDir   string // "": os.TempDir()
	SpillLimit int64  // 0: the size of the region

	// PageSize is the unit of paging in bytes, a power of two from FrameSize
	// to MaxPageSize. 0: FrameSize.
	PageSize int

	// HugePages has the pages of a read-only region, whose PageSize is MaxPageSize, be
	// huge pages of the kernel's, and has them moved to their place and back instead of
	// copied (UFFDIO_MOVE in ioctl_userfaultfd(2)). docs/lab-notes.md, "Pages of 2 MiB", says what that
	// saves. Where that is not to be had (before Linux 6.17, transparent huge pages
	// switched off, memory locked) they are copied, in small ones. Map refuses it for
	// other regions. A store to such a page, always an error, may pass unnoticed in the
	// microseconds in which the page comes.
	HugePages bool

	// MaxSize is how far Resize may grow the region. 0: the store's size.
	MaxSize int64

	// MinResident is how many bytes of this region eviction leaves alone;
	// MaxResident how many it may have resident at most (requests that look at
	// the same moment may pass it by a page each). 0: no bound.
	MinResident, MaxResident int64

	// Durability: InPlace or Atomic.
	Durability Durability

	// Journal says where the journal of an Atomic region is.
	Journal JournalOptions

	// Prefetch decides what to read early. nil: prefetch.Readahead with its
	// defaults. A policy belongs to one region.
	Prefetch prefetch.Policy

	// Evict orders this region's pages. nil: the pager's own S3-FIFO, shared
	// by all regions without a policy of their own. A policy belongs to one
	// region as long as that is open: one that is another's (told by its pointer)
	// is ErrBusy.
	Evict evict.Policy

	// Writeback says when dirty pages are written without being asked.
	Writeback Writeback

	// Verify is told of every page that comes in from the store, before anyone
	// sees it. An error makes the access fail with it. Pages that were
	// discarded, or never written, are zeros; the last one may be a part, with
	// zeros after it. It runs on the pager's goroutines and on those of who reads,
	// must not block, and rules out raw access (see Region.Raw); store.NewChecksummed
	// does not. If it panics the process ends, whoever would recover: so it is with
	// every hook, policy and listener.
	Verify func(page int64, data []byte) error

	// Seal may change the copy of a page that is about to be written (to put
	// a checksum in, say), after BeforeWrite has let it through; an error keeps
	// the page dirty. What is in memory is not changed. Of the last page only
	// what lies within the region is written. Same rules as Verify.
	Seal func(page int64, data []byte) error

	// Retry says which errors of the store pass, and are worth another try.
	Retry Retry

	// OnReadError is what raw access does when a page cannot be read, once
	// there have been retries.
	OnReadError OnReadError
}

// Retry says which errors of the store pass by themselves: a read or write that
// meets one is repeated before anybody is told. A flush never is (see Sync).
type Retry struct {
	// Times is how often. 0: 4; negative: never.
	Times int
	// Pause is how long before the first repetition; each further pause is
	// four times as long, up to MaxPause, or all are Pause if that is longer.
	// 0: 1 ms and 250 ms.
	Pause, MaxPause time.Duration
	// Errnos are those that pass. nil: EAGAIN, EINTR, EBUSY, ENOMEM, ENOBUFS,
	// ETIMEDOUT, ENOLINK. For a device that goes away and comes back, say, EIO,
	// ENXIO and ENODEV may belong here.
	Errnos []syscall.Errno
}

// JournalOptions say where the journal of an Atomic region is and how large it
// may be. The zero value puts it beside the file. Of a region that is not Atomic they
// say where Map looks for commits that it must not pass over.
type JournalOptions struct {
	// Path of the journal's file, which is made if it does not exist. "": the
	// path of the region's file (that of the file itself, if it was opened by a
	// symbolic link) with ".journal" behind it; then Close removes it when it is
	// empty. Of a block device, and of a store that is no *store.File, Path or Store
	// must be given.
	Path string

	// Store, if not nil, is the journal instead of a file. Map owns it, as it
	// owns the region's store.
	Store store.Store

	// Limit is the most bytes that the journal may take. It bounds what can be
	// uncommitted, and how long recovery takes. 0: a quarter of the region's
	// size, from 16 MiB to 1 GiB. A journal has room for 16 pages, whatever is given.
	Limit int64

	// Interval is how long a commit may stay in the journal before it is
	// brought to the store. 0: 30 s; negative: for ever.
	Interval time.Duration

	// ID is a name for the region's store, of at most 128 bytes, by which the
	// journal knows it. "": its inode and the like.
	ID string

	// Adopt takes a journal that knows another store by its commits: of a
	// copied file, say, whose journal was copied with it.
	Adopt bool

	// Salvage takes of a damaged journal what can be read. Commits that were
	// acknowledged are lost then.
	Salvage bool
}

// Writeback says when dirty pages are written without being asked. The zero
// value writes when a quarter of the budget is dirty, or after five seconds.
// Such writes come after reads, those of prefetching among them. Beside them, a
// dirty page is written when it has to leave or when nothing more may become
// dirty (not with NoSteal), and by Sync and Close. A page that WriteAt writes whole
// while it is absent may be written at once: where much is dirty, or nothing but ReadAt
// and WriteAt of whole pages has come to the region for some hundred misses (not with
// Rate, Policy, NoSteal or BeforeWrite).
type Writeback struct {
	// DirtyShare is the share of the budget (0 … 1) above which dirty pages
	// are written. 0: 0.25.
	DirtyShare float64
	// Age is how long a page may stay dirty. 0: 5 s; negative: for ever. While
	// reads wait for the device, up to twice that.
	Age time.Duration
	// Rate is the most that is written in this way, in bytes per second. 0: no
	// limit.
	Rate int64
	// Policy decides instead of DirtyShare and Age. A policy belongs to one
	// region.
	Policy writeback.Policy
	// NoSteal keeps dirty pages in memory until Sync.
	NoSteal bool
	// BeforeWrite is asked before pages are written, whoever wants them
	// written: for write-ahead logs, where a page must not reach the store
	// before the log that describes its changes. What it is shown is a private
	// copy, the very bytes that would be written, so that a change made while
	// it is being asked is not among them. false is "not yet": the pages stay
	// dirty, and it is asked again soon. It may set the log going, but must
	// not wait for it, nor call this pager, nor touch memory of its regions
	// that is not pinned.
	//
	// Sync waits until it has said yes to all of its pages. Close waits as
	// long as some page is let through at least every Options.StallLimit; then
	// it gives up on the others and says so (ErrBusy).
	BeforeWrite func(pages PageRun) bool
}

// PageRun is consecutive pages of a region and their contents.
type PageRun struct {
	First, N int64  // in pages
	Data     []byte // N pages, valid during the call, not to be changed
}

// Advice is what Region.Advise is told, after madvise(2).
type Advice uint8

const (
	Normal     Advice = iota // the region's prefetcher decides
	Random                   // no prefetch
	Sequential               // read ahead, and let what was read leave first
	WillNeed                 // read the range in the background
	DontNeed                 // drop clean pages of the range now
	Cold                     // let the range leave before anything else
)

// Range is a range of a region, in bytes.
type Range struct {
	Off, Len int64
}

// EventListener is told of what happens. Any field may be nil. The functions
// run on the pager's goroutines and on those of its users (whoever needs room
// evicts), under no lock of the pager, several at a time. They must not block:
// I/O that others wait for may be standing still meanwhile. Of the pager they
// may call what never waits and starts no I/O: Stats, Residency, Len, Advise with
// Cold. Anything else that an event asks for belongs on another goroutine.
type EventListener struct {
	ReadError  func(r *Region, off, n int64, err error)
	WriteError func(r *Region, off, n int64, err error)
	Evicted    func(pages int)
	Degraded   func(what string) // something works, but not as well as it could
	Wedged     func(w Wedge)     // something does not end; once for each
}
