package pager

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/pager/writeback"
	"github.com/uffdpager/uffdpager/prefetch"
)

// badPolicies panic as soon as they are told of anything.
type (
	badPrefetch  struct{ prefetch.Policy }
	badEvict     struct{ evict.Policy }
	badWriteback struct{ writeback.Policy }
)

func (badPrefetch) Observe(prefetch.Event, *prefetch.Plan)    { panic("the hook's own") }
func (badEvict) Install(evict.Page, evict.Reason)             { panic("the hook's own") }
func (badWriteback) Observe(writeback.Event, *writeback.Plan) { panic("the hook's own") }

// A panic in a hook ends the process, with its own words and the hook's name and
// stack, also where the hook runs on a goroutine that recovers: it may have the
// gate of a region and the turn to commit, or a page, that nobody else can let go.
// It must not be that the process lives and the next commit waits for ever.
func TestAHookThatPanicsEndsTheProcess(t *testing.T) {
	boom := func(int64, []byte) error { panic("the hook's own") }
	write := func(r *Region) error { _, err := r.WriteAt([]byte{1}, 5); return err }
	syncs := func(r *Region) error {
		if err := write(r); err != nil {
			return err
		}
		return r.Sync(context.Background())
	}
	leavable := func(r *Region) error {
		if err := write(r); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		return r.Commit(ctx)
	}
	reads := func(r *Region) error { _, err := r.ReadAt(make([]byte, 100), 0); return err }
	readsAndTells := func(r *Region) error {
		if err := reads(r); err != nil {
			return err
		}
		return r.Advise(0, r.Len(), Cold)
	}
	atomic := func(o RegionOptions) RegionOptions {
		o.Durability, o.Journal = Atomic, JournalOptions{Store: store.NewMemory(1 << 20)}
		return o
	}
	for _, c := range []struct {
		name, says string
		o          RegionOptions
		events     *EventListener
		do         func(*Region) error
	}{
		{"Seal in Sync", "RegionOptions.Seal panicked: the hook's own", RegionOptions{Seal: boom}, nil, syncs},
		{"Seal in Commit", "RegionOptions.Seal panicked: the hook's own", atomic(RegionOptions{Seal: boom}), nil, syncs},
		{"Seal in Commit with a context", "RegionOptions.Seal panicked: the hook's own", atomic(RegionOptions{Seal: boom}), nil, leavable},
		{"Seal ends its goroutine", "RegionOptions.Seal called runtime.Goexit", RegionOptions{Seal: func(int64, []byte) error {
			runtime.Goexit()
			return nil
		}}, nil, syncs},
		{"Verify", "RegionOptions.Verify panicked: the hook's own", RegionOptions{Verify: boom}, nil, reads},
		{"BeforeWrite", "Writeback.BeforeWrite panicked: the hook's own", RegionOptions{Writeback: Writeback{
			BeforeWrite: func(PageRun) bool { panic("the hook's own") },
		}}, nil, syncs},
		{"a prefetch policy", "prefetch.Policy panicked: the hook's own", RegionOptions{Prefetch: badPrefetch{}}, nil, reads},
		{"an eviction policy", "evict.Policy.Install panicked: the hook's own", RegionOptions{Evict: badEvict{evict.NewFIFO()}}, nil, readsAndTells},
		{"a writeback policy", "writeback.Policy panicked: the hook's own", RegionOptions{Writeback: Writeback{Policy: badWriteback{}}}, nil, func(r *Region) error {
			err := write(r)
			time.Sleep(10 * tick)
			return err
		}},
		{"a listener", "EventListener panicked: the hook's own", RegionOptions{Seal: func(int64, []byte) error { return errUser }},
			&EventListener{WriteError: func(*Region, int64, int64, error) { panic("the hook's own") }}, syncs},
	} {
		t.Run(c.name, func(t *testing.T) {
			needProtection(t)
			if os.Getenv("UFFDPAGER_HOOK_PANIC") != "" {
				p, err := New(Options{Budget: 64 * FrameSize, Events: c.events})
				if err != nil {
					t.Fatal(err)
				}
				r, err := p.Map(store.NewMemory(16*FrameSize), c.o)
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					defer func() { fmt.Println("recovered:", recover()) }()
					fmt.Println("returned:", c.do(r))
				}()
				<-ended
				os.Exit(0)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			child := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+strings.ReplaceAll(strings.ReplaceAll(t.Name(), " ", "_"), "/", "$/^")+"$")
			child.Env = append(os.Environ(), "UFFDPAGER_HOOK_PANIC=1")
			out, err := child.CombinedOutput()
			if s := string(out); err == nil || !strings.Contains(s, "panic: pager: "+c.says) || !strings.Contains(s, "hookpanic_linux_test.go") {
				t.Errorf("the process ended with %v, and said:\n%s", err, s)
			}
		})
	}
}
