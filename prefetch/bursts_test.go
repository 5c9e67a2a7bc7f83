package prefetch

import "testing"

// Goroutines that each go through what is there before another runs: those that
// wait for their turn are not gone, and what has been read ahead for them is not
// pushed out by what is read for the others in their place.
func TestReadaheadOfStreamsInBursts(t *testing.T) {
	const streams, turn, rounds = 64, 200, 10
	var accesses []int64
	for round := range int64(rounds) {
		for i := range int64(streams) {
			accesses = append(accesses, scan(i*16384+round*turn, turn, 1)...)
		}
	}
	for _, sees := range []bool{false, true} {
		s := newSimulator(Readahead(ReadaheadOptions{}), 1<<20, 16384)
		s.sees, s.holds = sees, !sees
		got := s.run(accesses)
		misses, wasted := float64(got.misses)/float64(got.accesses), float64(got.unused)/float64(got.issued)
		active := s.policy.(*readahead).table.active
		t.Logf("touches seen %v: %.4f missed, %.4f of %d wasted, %d streams active", sees, misses, wasted, got.issued, active)
		if misses > 0.01 || wasted > 0.05 {
			t.Errorf("touches seen %v: %.4f missed, %.4f of what was read ahead wasted; want at most 0.01, 0.05", sees, misses, wasted)
		}
		if active < streams/2 {
			t.Errorf("touches seen %v: %d of %d streams count as active", sees, active, streams)
		}
	}
}
