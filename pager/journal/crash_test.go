package journal

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// A pager without memory spills, commits and checkpoints over two recording
// stores of one clock, and notes what the region is at every commit. Then the
// power goes at every tick: whatever the images hold, a replay must give a
// commit that is not older than what was acknowledged by then, whole.

// fault is an order broken on purpose. The sweep finds each.
type fault int

const (
	noFault           fault = iota
	ackBeforeFlush          // a commit is acknowledged before its flush
	inPlaceFirst            // pages go in place before their commit is durable
	reuseBeforeHeader       // slots are used again before the checkpoint's header is durable
	dataNotFlushed          // the header goes out before the data store is flushed
)

func (f fault) String() string {
	return [...]string{"none", "acknowledged before the flush", "in place before the journal", "slots reused before the header", "header before the data"}[f]
}

const (
	crashPages = 10
	crashSlots = 3 * crashPages
)

// attempt is a commit that was tried.
type attempt struct {
	seq         uint64
	region      []byte
	begun       int // tick from which a crash may leave it
	ack         int // tick from which every crash must; 0: never
	overwritten int // tick from which none may any more; 0: never
}

// driver is the pager without memory.
type driver struct {
	t        *testing.T
	rng      *rand.Rand
	rec      *store.Recorder
	data, js *store.Recording
	j        *Journal
	fault    fault

	length, min int64              // of the region, now and at least since the last commit
	pages       [crashPages][]byte // the region
	versions    uint64
	spilled     map[uint64]Entry  // uncommitted images
	taken       map[uint32]uint64 // slots in use: the commit that names them, 0: none yet
	tried       []attempt
}

func newDriver(t *testing.T, seed uint64, f fault) *driver {
	d := &driver{t: t, rng: rand.New(rand.NewPCG(seed, uint64(f))), rec: new(store.Recorder), fault: f,
		spilled: map[uint64]Entry{}, taken: map[uint32]uint64{}}
	wrap := func(s store.Store) *store.Recording {
		r, err := store.NewRecording(s, d.rec)
		d.must(err)
		return r
	}
	d.data, d.js = wrap(store.NewMemory(crashPages*page)), wrap(blank())
	d.j = mustOpen(t, d.js, crashOptions())
	grow(t, d.j)
	d.length, d.min = crashPages*page, crashPages*page
	for i := range d.pages {
		d.pages[i] = make([]byte, page)
	}
	d.tried = []attempt{{region: d.region(), ack: d.rec.Now()}}
	return d
}

// crashOptions: few slots, and the smallest ring.
func crashOptions() Options { return Options{PageSize: page, Limit: minRing + (2*crashSlots+2)*page} }

func (d *driver) must(err error) {
	if err != nil {
		d.t.Helper()
		d.t.Fatal(err)
	}
}

func (d *driver) region() []byte { return bytes.Join(d.pages[:], nil)[:d.length] }

func (d *driver) run(steps int) {
	for range steps {
		switch x := d.rng.IntN(100); {
		case x < 55:
			d.store()
		case x < 63:
			d.resize()
		case x < 84:
			d.commit(false)
		case x < 88:
			d.commit(true)
		case x < 96:
			d.checkpoint()
		default:
			d.restart()
		}
	}
}

// store changes a page and spills it.
func (d *driver) store() {
	if len(d.taken) >= crashSlots {
		return
	}
	p := d.rng.Uint64N(uint64(d.length+page-1) / page)
	// Sometimes what was there before: an image that makes an old record whole.
	if d.versions++; d.rng.IntN(3) > 0 {
		fill(d.pages[p], p, d.versions)
	} else {
		fill(d.pages[p], p, 1)
	}
	if end := d.length - int64(p)*page; end < page {
		clear(d.pages[p][end:])
	}
	d.spill(p)
}

func (d *driver) spill(p uint64) {
	e, ok := d.spilled[p]
	if !ok {
		e = Entry{Page: p}
		for has := true; has; _, has = d.taken[e.Slot] {
			e.Slot = uint32(d.rng.IntN(crashSlots + 1))
		}
		d.taken[e.Slot] = 0
	}
	e.CRC = CRC32C(d.pages[p])
	d.must(d.j.write(background, d.pages[p], d.j.SlotOffset(e.Slot)))
	d.spilled[p] = e
}

// resize changes the length; what is cut off is zero when it comes back.
func (d *driver) resize() {
	d.length = d.rng.Int64N(crashPages*page) + 1
	d.min = min(d.min, d.length)
	for p := range uint64(crashPages) {
		end := d.length - int64(p)*page
		if end >= page {
			continue
		}
		clear(d.pages[p][max(end, 0):])
		if e, ok := d.spilled[p]; ok && end > 0 {
			d.spill(p)
		} else if ok {
			delete(d.spilled, p)
			delete(d.taken, e.Slot)
		}
	}
}

// commit makes the spilled images a commit, or tries to and fails halfway.
func (d *driver) commit(fails bool) {
	c := Commit{Length: d.length, MinLength: d.min, Entries: slices.Collect(maps.Values(d.spilled))}
	r, err := d.j.Record(c)
	if err != nil {
		d.checkpoint()
		r, err = d.j.Record(c)
	}
	d.must(err)
	a := attempt{seq: r.Seq, region: d.region(), begun: d.rec.Now()}
	if d.fault == inPlaceFirst {
		v := Overlay{Pages: map[uint64]Image{}}
		for p, e := range d.spilled {
			v.Pages[p] = Image{e.Slot, e.CRC, page}
		}
		d.must(d.j.place(background, medium{s: d.data}, v))
	}
	if d.must(d.j.run(r.Ops)); fails {
		d.j.Abandoned(r)
		d.tried = append(d.tried, a)
		return
	}
	if d.fault != ackBeforeFlush {
		d.must(d.j.flush())
	}
	a.ack = d.rec.Now()
	if d.fault == ackBeforeFlush {
		d.must(d.j.flush())
	}
	d.j.Committed(r)
	d.settle(func(x *attempt) bool { return x.seq >= a.seq }, a.ack)
	d.tried = append(d.tried, a)
	for _, e := range d.spilled {
		d.taken[e.Slot] = r.Seq
	}
	clear(d.spilled)
	d.min = d.length
}

// settle notes that attempts cannot come back from now on.
func (d *driver) settle(which func(*attempt) bool, now int) {
	for i := range d.tried {
		if x := &d.tried[i]; x.overwritten == 0 && which(x) {
			x.overwritten = now
		}
	}
}

// checkpoint puts what is committed in place, reading the log back as a replay
// would.
func (d *driver) checkpoint() {
	seq := d.j.LastSeq()
	if seq == d.j.head.seq {
		return
	}
	records, err := d.j.scan(background, &d.j.head)
	d.must(err)
	var log []Commit
	for _, r := range records[:seq-d.j.head.seq] { // a commit that failed may follow
		log = append(log, r.Commit)
	}
	v := View(log, page)
	for _, n := range []int64{min(v.Void, d.data.Size()), v.Length} {
		if n != d.data.Size() {
			d.must(d.data.Truncate(n))
		}
	}
	d.must(d.j.place(background, medium{s: d.data}, v))
	if d.fault != dataNotFlushed {
		d.must(medium{s: d.data}.flush())
	}
	h, err := d.j.Header(seq)
	d.must(err)
	free := func() { maps.DeleteFunc(d.taken, func(_ uint32, q uint64) bool { return q != 0 && q <= seq }) }
	if d.fault == reuseBeforeHeader {
		free()
		for range 5 {
			d.store()
		}
	}
	d.must(d.j.run([]*aio.Op{h.Op}))
	d.must(d.j.flush())
	d.j.Checkpointed(h)
	free()
}

// restart is a crash of the process: no write is lost, and what is whole is
// replayed.
func (d *driver) restart() {
	j, err := Open(background, keep{d.js}, nil, crashOptions())
	d.must(err)
	seq := j.LastSeq()
	if _, err := j.Replay(background, d.data); err != nil {
		d.t.Fatal(err)
	}
	if j.Slots() == 0 {
		grow(d.t, j)
	}
	now := d.rec.Now()
	b := contents(d.t, d.data)
	for i := range d.tried {
		if x := &d.tried[i]; x.seq == seq && x.ack == 0 && x.overwritten == 0 && bytes.Equal(x.region, b) {
			x.ack = now
		}
	}
	d.settle(func(x *attempt) bool { return x.ack == 0 }, now)
	d.j = j
	clear(d.spilled)
	clear(d.taken)
	d.length, d.min = int64(len(b)), int64(len(b))
	for p := range d.pages {
		clear(d.pages[p])
		copy(d.pages[p], b[min(p*page, len(b)):])
	}
}

// judge says what is wrong with the stores after a loss of power.
func (d *driver) judge(tick int, js, data store.Store) error {
	j, err := Open(background, js, nil, crashOptions())
	if err != nil {
		return fmt.Errorf("Open: %w", err)
	}
	defer j.free()
	seq, log := j.LastSeq(), j.Log()
	view := d.view(j, contents(d.t, data))
	if _, err := j.Replay(background, data); err != nil {
		return fmt.Errorf("Replay: %w", err)
	}
	got := contents(d.t, data)
	if !bytes.Equal(view, got) {
		return fmt.Errorf("commit %d: the overlay and the replay differ", seq)
	}
	last := uint64(0)
	for _, a := range d.tried {
		if a.ack > 0 && a.ack <= tick {
			last = a.seq
		}
	}
	if seq < last {
		return fmt.Errorf("ends with commit %d, and %d was acknowledged", seq, last)
	}
	for _, a := range d.tried {
		if a.seq == seq && a.begun <= tick && (a.overwritten == 0 || tick < a.overwritten) && bytes.Equal(a.region, got) {
			return nil
		}
	}
	return fmt.Errorf("commit %d (of %d in the log) is not what was committed, or had been given up", seq, len(log))
}

// view is the region as a read-only opener sees it.
func (d *driver) view(j *Journal, data []byte) []byte {
	v := j.Overlay()
	if v.Length < 0 {
		return data
	}
	b := make([]byte, (v.Length+page-1)/page*page)
	copy(b, data[:min(v.Void, int64(len(data)))])
	for p, i := range v.Pages {
		at := b[p*page : (p+1)*page]
		d.must(j.read(background, at, j.SlotOffset(i.Slot)))
		clear(at[i.Valid:])
	}
	return b[:v.Length]
}

// sweep lets the power go at every tick, with so many random fates each. It
// says of how many images what was wrong with the last.
func (d *driver) sweep(seed uint64, fates int) (images int, bad error) {
	now := d.rec.Now()
	first := d.tried[0].ack
	for tick := first; tick <= now; tick++ {
		for fate := range fates + 2 {
			survives := store.AtRandom(seed + uint64(fate))
			switch fate {
			case 0:
				survives = nil
			case 1:
				survives = store.Everything
			}
			js, data := store.NewSlice(d.js.Image(tick, survives)), store.NewSlice(d.data.Image(tick, survives))
			images++
			var err error
			if fate == 2 { // and goes once more during the replay
				err = d.twice(tick, seed, js, data)
			} else {
				err = d.judge(tick, js, data)
			}
			if err != nil {
				return images, fmt.Errorf("tick %d, fate %d: %w", tick, fate, err)
			}
		}
	}
	return images, nil
}

// twice interrupts the replay by a second loss of power.
func (d *driver) twice(tick int, seed uint64, js, data store.Store) error {
	rec := new(store.Recorder)
	rjs, err := store.NewRecording(js, rec)
	d.must(err)
	rdata, err := store.NewRecording(data, rec)
	d.must(err)
	if err := d.judge(tick, rjs, rdata); err != nil {
		return err
	}
	at := int(draw(seed, uint64(tick)) % uint64(rec.Now()+1))
	survives := store.AtRandom(seed ^ uint64(tick))
	js2, data2 := store.NewSlice(rjs.Image(at, survives)), store.NewSlice(rdata.Image(at, survives))
	if err := d.judge(tick, js2, data2); err != nil {
		return fmt.Errorf("after a second loss of power at %d of %d: %w", at, rec.Now(), err)
	}
	return nil
}

func draw(a, b uint64) uint64 { return rand.New(rand.NewPCG(a, b)).Uint64() }

func TestPowerLossAtEveryTick(t *testing.T) {
	histories, images := 2, 0
	if os.Getenv("UFFDPAGER_TORTURE") == "1" {
		histories = 100
	}
	for seed := range uint64(histories) {
		d := newDriver(t, seed, noFault)
		d.run(60)
		n, err := d.sweep(seed, 3)
		if images += n; err != nil {
			t.Fatalf("history %d: %v", seed, err)
		}
	}
	t.Logf("%d images", images)
}

// Every order that the argument in docs/journal-format.md rests on, broken.
func TestBrokenOrdersAreFound(t *testing.T) {
	for _, f := range []fault{ackBeforeFlush, inPlaceFirst, reuseBeforeHeader, dataNotFlushed} {
		var found error
		images := 0
		for seed := uint64(0); seed < 20 && found == nil; seed++ {
			d := newDriver(t, seed, f)
			d.run(60)
			n, err := d.sweep(seed, 3)
			images, found = images+n, err
		}
		if found == nil {
			t.Fatalf("%v: not found in %d images", f, images)
		}
		t.Logf("%v: after %d images: %v", f, images, found)
	}
}

// A commit that was torn when the power went, and so never was, must not become
// whole when the same image is written to the same slot again.
func TestATornCommitDoesNotComeBack(t *testing.T) {
	j := mustOpen(t, blank(), small())
	grow(t, j)
	torn := Commit{Length: 2 * page, MinLength: 2 * page, Entries: []Entry{putImage(t, j, 0, 1, 0), putImage(t, j, 1, 1, 1)}}
	if err := j.Commit(background, torn); err != nil {
		t.Fatal(err)
	}
	if err := j.write(background, make([]byte, page), j.SlotOffset(1)); err != nil { // it never arrived
		t.Fatal(err)
	}
	j = mustOpen(t, again(t, j), small())
	if len(j.Log()) != 0 {
		t.Fatal("a torn commit was found")
	}
	putImage(t, j, 1, 1, 1)
	if k := mustOpen(t, again(t, j), small()); len(k.Log()) != 0 {
		t.Fatalf("it came back: %v", k.Log())
	}
}

// After a crash of the process alone the last commit may be in the device's
// cache only: it is flushed before anything of it goes in place.
func TestReplayFlushesTheLogFirst(t *testing.T) {
	d := newDriver(t, 1, noFault)
	d.store()
	r, err := d.j.Record(Commit{Length: d.length, MinLength: d.min, Entries: slices.Collect(maps.Values(d.spilled))})
	d.must(err)
	d.must(d.j.run(r.Ops)) // no flush: killed here
	k := mustOpen(t, keep{d.js}, crashOptions())
	if len(k.Log()) != 1 {
		t.Fatal("the commit is not there")
	}
	from := d.rec.Now()
	if _, err := k.Replay(background, d.data); err != nil {
		t.Fatal(err)
	}
	for _, x := range d.rec.Records() {
		if x.Begun <= from {
			continue
		}
		if x.Store == d.js && x.Op == store.OnFlush {
			return
		}
		if x.Store == d.data {
			t.Fatal("written in place before the log was flushed")
		}
	}
}
