package pager

import (
	"context"
	"runtime"
	"sync"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// laterSpy notes which reads go out as such that nobody waits for.
type laterSpy struct {
	store.Store
	mu    sync.Mutex
	later map[int64]bool // by offset
}

func (s *laterSpy) Start(e aio.Engine, ops []*aio.Op) {
	s.mu.Lock()
	for _, op := range ops {
		s.later[op.Off] = op.Later
	}
	s.mu.Unlock()
	s.Store.Start(e, ops)
}

// What is read ahead is installed after what somebody waits for.
func TestReadsAheadComeLater(t *testing.T) {
	spy := &laterSpy{Store: store.NewMemory(8 << 20), later: map[int64]bool{}}
	p, r := rawMap(t, Options{Budget: 8 << 20}, spy, RegionOptions{ReadOnly: true, Prefetch: prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
		if e.Kind == prefetch.Miss {
			plan.Add(e.Page+8, 1)
		}
	})})
	defer p.Close()
	pin, err := r.Acquire(context.Background(), 0, FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	if err := r.Advise(4<<20, FrameSize, WillNeed); err != nil {
		t.Fatal(err)
	}
	spy.mu.Lock()
	defer spy.mu.Unlock()
	for off, want := range map[int64]bool{0: false, 8 * FrameSize: true, 4 << 20: true} {
		if later, read := spy.later[off]; !read || later != want {
			t.Errorf("the read at %d (%v) is later: %v, want %v", off, read, later, want)
		}
	}
}

// Who has been told of his page runs before what nobody waits for is installed,
// even if there is no other processor; but not if that took long the last time.
func TestWhoIsToldRunsFirst(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p, _ := rawMap(t, Options{Budget: 1 << 20}, store.NewMemory(1<<20), RegionOptions{ReadOnly: true})
	defer p.Close()
	first := 0
	const rounds = 50
	for range rounds {
		told, ran := make(chan struct{}, 1), make(chan struct{})
		go func() {
			<-told
			close(ran)
		}()
		runtime.Gosched() // he waits
		p.courtesy.between.rest.Store(0)
		told <- struct{}{}
		p.letRun()
		select {
		case <-ran:
			first++
		default:
		}
		<-ran
	}
	if first < rounds*9/10 {
		t.Errorf("ran first %d of %d times", first, rounds)
	}

	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() { // nobody who waits for pages
		for x := 0; ; x++ {
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	p.courtesy.between.rest.Store(0)
	for i := 0; p.courtesy.between.rest.Load() == 0 && i < 1000; i++ {
		p.letRun() // one in 61 comes back at once
	}
	if p.courtesy.between.rest.Load() != letRest {
		t.Errorf("after a slow turn it rests for %d, want %d", p.courtesy.between.rest.Load(), letRest)
	}
	for range letRest {
		p.letRun() // without letting the other run: it would take 10 ms each
	}
	if n := p.courtesy.between.rest.Load(); n != 0 {
		t.Errorf("and has %d left after %d", n, letRest)
	}
	close(stop)
	busy.Wait()
}
