package prefetch

import "testing"

// Random work in a region that is not much larger than what memory holds of it:
// chance makes streams there all the time, and once there is a window random
// touches hit it. Whatever is read ahead, used or not, is at most 3 % of what was
// missed, in any of three modes and for several orders.
func TestReadaheadLeavesRandomWorkInSmallRegionsAlone(t *testing.T) {
	const touches = 40_000
	for _, pages := range []int64{1 << 10, 1 << 12, 1 << 13, 1 << 14, 1 << 15} {
		for _, share := range []int64{4, 16} {
			for _, mode := range []string{"raw", "held markers", "touches seen"} {
				var issued, used, misses, worst float64
				for seed := range uint64(2) {
					s := newSimulator(Readahead(ReadaheadOptions{}), pages, int(pages/share))
					s.sees, s.holds = mode == "touches seen", mode == "held markers"
					got := s.run(random(seed+11, touches, pages))
					issued += float64(got.issued)
					used += float64(got.used)
					misses += float64(got.misses)
					worst = max(worst, float64(got.issued)/float64(got.misses))
				}
				t.Logf("%6d pages, a budget of 1/%d, %-12s %.4f read ahead per miss, %.4f without use, %.4f at worst", pages, share, mode+":", issued/misses, (issued-used)/misses, worst)
				if issued/misses > 0.03 {
					t.Errorf("%d pages, a budget of 1/%d, %s: %.4f pages read ahead for each random miss", pages, share, mode, issued/misses)
				}
			}
		}
	}
}
