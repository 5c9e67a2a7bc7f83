package gauge

import (
	"testing"
	"time"
)

// A ticker in an idle process ticks, never more often than it should.
func TestTickerCounts(t *testing.T) {
	tick := StartTicker(time.Millisecond)
	time.Sleep(50 * time.Millisecond)
	fired, during := tick.Stop()
	if fired < 1 || fired > int64(during/time.Millisecond) {
		t.Errorf("%d ticks of 1 ms in %v", fired, during)
	}
}
