//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/journal"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Atomic regions
//
// Nothing that is not committed reaches the store of an Atomic region. Dirty
// pages that must leave go to slots of its journal and are read back from
// there (slots.go). A commit puts images of all that is dirty, and one record
// that names them, into the journal, and flushes it once (cut.go, commit.go). A
// checkpoint copies committed images to the store in the background
// (checkpoint.go). Map brings what a crash has left to the store before
// anything else; a read-only Map puts it over the store instead and writes
// nothing.
//
// Lock order: turn (who commits), gates, keep (who checkpoints or grows),
// views, atomicState.mu, writeState.mu. Under views and mu nothing is waited
// for.
type atomicState struct {
	r        *Region
	j        *journal.Journal
	path     string // of the journal if it is to be removed when it is empty
	interval time.Duration

	gate    gate
	turn    chan struct{} // has what holds the turn to commit
	list    []dirtyPage   // memory of a list, who has the turn's
	cutting atomic.Bool   // no evictions: the cut waits for the writes under way
	writers atomic.Int64  // writes of images that are no commit's, and callers of writeSlots
	keep    sync.Mutex
	views   sync.Mutex // places becoming 0, together with desc.stored

	mu        sync.Mutex
	waiting   []*SyncOp        // for the next commit
	log       []journal.Commit // committed, and not covered by a durable header
	applied   int              // of these, in place
	length    int64            // of the region, as last committed
	minLength int64            // the smallest since

	clock   clock
	due     atomic.Bool   // a checkpoint, by the clock
	backoff time.Duration // the keeper's
	wake    chan struct{} // the committer
	kick    chan struct{} // the keeper
	stop    chan struct{}
	wg      sync.WaitGroup
}

const defaultInterval = 30 * time.Second

// journalPath is where the journal of a store lies unless an option says
// otherwise; "" if it is no regular file. A file has one journal, whatever links
// and relative names it is opened by.
func journalPath(s store.Store) string {
	f, ok := s.(*store.File)
	if !ok {
		return ""
	}
	name := f.String()
	if k, _ := f.Kernel(); k.FD >= 0 {
		var st unix.Stat_t
		if unix.Fstat(k.FD, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return "" // beside a device there is no disk, but memory
		}
		if real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", k.FD)); err == nil && isFile(real, fileIn(s)) {
			return real + ".journal"
		}
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	return name + ".journal"
}

// fileIn says which file a store is in; nil: none, or nobody knows.
func fileIn(s store.Store) *unix.Stat_t {
	var st unix.Stat_t
	if k, ok := s.Kernel(); !ok || k.FD < 0 || unix.Fstat(k.FD, &st) != nil {
		return nil
	}
	return &st
}

// isFile: the file of that name is st's.
func isFile(name string, st *unix.Stat_t) bool {
	var now unix.Stat_t
	return st != nil && unix.Lstat(name, &now) == nil && now.Dev == st.Dev && now.Ino == st.Ino
}

// openJournal opens the journal of an Atomic region and brings what is
// committed to the store; that of a read-only one is only read. nil: there is
// none. A store that is mapped otherwise must have no journal with commits in
// it: it is read through it, or refused. remove is the journal's path if it is to go when
// it is empty; made is its path if there was none before, so that it goes with a Map that fails.
func (p *Pager) openJournal(s store.Store, o *RegionOptions, pageSize int) (j *journal.Journal, remove, made string, err error) {
	jo := &o.Journal
	readOnly := o.ReadOnly || !s.Writable() && !o.Private
	path := jo.Path
	if path == "" && jo.Store == nil {
		path = journalPath(s)
	}
	if o.Durability != Atomic || readOnly {
		if jo.Store == nil {
			var st unix.Stat_t
			if path == "" || unix.Stat(path, &st) != nil || jo.Path == "" && st.Mode&unix.S_IFMT != unix.S_IFREG {
				return nil, "", "", nil
			}
		}
	}
	if jo.Store == nil && path == "" {
		return nil, "", "", fmt.Errorf("pager: Map %s: the store is no file in a directory, so an Atomic region needs Journal.Path or Journal.Store", s)
	}
	js := jo.Store
	if js == nil {
		fo := store.FileOptions{Create: true, Size: journal.InitialSize()}
		if readOnly || o.Durability != Atomic {
			// The shared lock keeps a writer away as long as the region lives.
			fo = store.FileOptions{ReadOnly: true, Lock: store.LockAlways}
		}
		if js, err = store.OpenFile(path, fo); err != nil {
			if errors.Is(err, store.ErrEmpty) && fo.ReadOnly {
				return nil, "", "", nil // nothing was ever written to it
			}
			return nil, "", "", fmt.Errorf("pager: Map %s: journal: %w", s, err)
		}
	}
	ctx := context.Background()
	if o.Durability != Atomic && !readOnly {
		info, err := journal.Probe(ctx, js, p.engine)
		if byChance(err, jo) {
			err = nil
		}
		err = errors.Join(err, js.Close())
		if err == nil && info.Live > 0 {
			err = fmt.Errorf("%w: %s has %d commits for %s: map it Atomic (and close it) first", ErrJournal, path, info.Live, s)
		}
		return nil, "", "", err
	}
	var file *unix.Stat_t
	if f, ok := js.(*store.File); ok && jo.Store == nil && f.Created() {
		made, file = path, fileIn(js)
	}
	id := journal.IdentityOf(s)
	id.ID = jo.ID
	limit := jo.Limit
	if limit == 0 {
		limit = journal.DefaultLimit(max(s.Size(), o.MaxSize))
	}
	j, err = journal.Open(ctx, js, p.engine, journal.Options{
		PageSize: pageSize, Identity: id, Limit: limit, ReadOnly: readOnly, Adopt: jo.Adopt, Salvage: jo.Salvage, Reaped: true,
	})
	if o.Durability != Atomic && byChance(err, jo) {
		return nil, "", "", nil
	}
	if err != nil {
		err = fmt.Errorf("pager: Map %s: %w", s, err)
		if made != "" && isFile(made, file) {
			err = errors.Join(err, os.Remove(made))
		}
		return nil, "", "", err
	}
	if readOnly && len(j.Log()) == 0 {
		return nil, "", "", j.Close(ctx)
	}
	if !readOnly {
		if _, err := j.Replay(ctx, s); err != nil {
			return nil, "", "", errors.Join(fmt.Errorf("pager: Map %s: %w", s, err), j.Close(ctx))
		}
	}
	if !readOnly && jo.Path == "" && jo.Store == nil {
		remove = path
	}
	return j, remove, made, nil
}

// byChance: what has the name of a journal is something else's file, and nobody
// has said that there is a journal.
func byChance(err error, o *JournalOptions) bool {
	return errors.Is(err, journal.ErrNoJournal) && o.Path == "" && o.Store == nil
}

// openSide makes the journal the region's side store. The region's length and
// what its store has are set.
func (r *Region) openSide(j *journal.Journal, remove string) error {
	d := r.d
	r.write.side = j.Store()
	d.sideOff = uint64(j.SlotOffset(0))
	if err := d.openSideMap(d.pages); err != nil {
		return err
	}
	if r.opt.ReadOnly {
		v := j.Overlay()
		d.length, d.stored = uint64(v.Length), min(d.stored, uint64(v.Void))
		for page, image := range v.Pages {
			*d.sideWord(page) = image.Slot + 1
			if int64(image.Valid) < min(int64(1)<<r.shift, v.Length-int64(page<<r.shift)) {
				return fmt.Errorf("pager: Map %s: %w: page %d was cut after it was committed; map it for writing", r.name, ErrJournal, page)
			}
		}
		return nil
	}
	if err := d.openSlots(j.MaxSlots()); err != nil {
		return err
	}
	d.moreSlots(j.Slots())
	r.limitLoose()
	d.slotReserve = min(16, d.slotMost/8)
	a := &atomicState{
		r: r, j: j, path: remove, interval: r.opt.Journal.Interval,
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1), kick: make(chan struct{}, 1), stop: make(chan struct{}),
		length: int64(d.length), minLength: int64(d.length),
	}
	if a.interval == 0 {
		a.interval = defaultInterval
	}
	r.atomic = a
	j.AroundFlushes(a.keeperFlush)
	a.wg.Add(2)
	go a.committer()
	go a.keeper()
	a.poke()
	return nil
}

// limitLoose says how many slots may hold what is not committed: what is dirty
// must find slots when it is committed.
func (r *Region) limitLoose() {
	most := int64(r.d.slotMost)
	bareStore64(&r.d.slotsMayLoose, most-min(r.p.pinnable.Load()/r.fpp, most/2))
}

// limitLoose does it for all regions, after the budget has changed.
func (p *Pager) limitLoose() {
	for _, r := range p.regionList() {
		if r.atomic != nil && r.enterAlways() {
			r.limitLoose()
			r.leave()
		}
	}
}

// resizable: the store can be made size bytes long by a checkpoint. A device
// cannot.
func (a *atomicState) resizable(size int64) error {
	r := a.r
	k, ok := r.store.Kernel()
	var st unix.Stat_t
	if ok && k.FD >= 0 && unix.Fstat(k.FD, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return r.fault("resize", uint64(size)>>r.shift, store.ErrNotSupported)
	}
	return nil
}

// cutOff ends a Resize to size: what the pages from first on had is forgotten.
// None of them is in memory or on its way.
func (a *atomicState) cutOff(size int64, first uint64) {
	d := a.r.d
	a.views.Lock()
	if d.stored > uint64(size) {
		bare.Store64(&d.stored, uint64(size))
	}
	for s := range bare.Load32(&d.slotCount) {
		w := bare.Load64(d.slotWord(s))
		if page := w >> slotPageShift; w != slotFree && page >= first && bare.Cas32(d.sideWord(page), s+1, 0) {
			dropLoose(d, page, s)
		}
	}
	// The page that the new end goes through has zeros behind it now, in memory
	// or in a newer slot. A checkpoint of what it had before must not take that
	// for what the store is to be read for, up to where it ended then.
	if page := uint64(size) >> a.r.shift; page < first {
		if v := d.place(page); v != 0 {
			if w := bare.Load64(d.slotWord(v - 1)); w&slotState == slotCommitting || w&slotState == slotCommitted {
				bare.Cas32(d.sideWord(page), v, 0)
			}
		}
	}
	a.views.Unlock()
	a.mu.Lock()
	a.minLength = min(a.minLength, size)
	a.mu.Unlock()
}

// stopAtomic ends the committer and the keeper; what waits fails. No passage
// may begin any more.
func (a *atomicState) stopAtomic() {
	close(a.stop)
	a.wg.Wait()
	a.turn <- struct{}{} // a Pager.Commit
	a.stopClock()
	a.failWaiting(ErrClosed)
}

// closeJournal is the end of the journal: all that is committed goes to the
// store, and a journal of our own making is removed. What is not committed is
// forgotten.
func (r *Region) closeJournal() error {
	if r.journal == nil {
		return nil
	}
	ctx := context.Background()
	var err error
	if a := r.atomic; a != nil {
		if err = a.flushError(); err == nil {
			err = a.checkpoint(ctx)
		}
	}
	a := r.atomic
	if a == nil || err != nil {
		return errors.Join(err, r.journal.Close(ctx))
	}
	return closeEmpty(r.journal, a.path)
}

// closeEmpty closes a journal that has nothing in it that would be missed, and removes
// it if path is not "". Not if it has been moved: what has its name is somebody else's
// then. (As long as it is open here nobody else can use it, and as long as the store is,
// nobody makes another.)
func closeEmpty(j *journal.Journal, path string) error {
	ours := path != "" && isFile(path, fileIn(j.Store()))
	err := j.Close(context.Background())
	if err == nil && ours {
		err = os.Remove(path)
	}
	return err
}
