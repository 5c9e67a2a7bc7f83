package main

import (
	"strings"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
)

// What does not end is printed once, when it is noted, and is in the report; of
// many, the first are named and all are counted.
func TestWhatDoesNotEndIsNamed(t *testing.T) {
	var w wedged
	var r report
	var errs, text strings.Builder
	show := newProgress(&errs)
	w.print(show, &errs)
	w.fill(&r)
	if err := r.writeText(&text); err != nil {
		t.Fatal(err)
	}
	if errs.Len() != 0 || strings.Contains(text.String(), "wedged") {
		t.Errorf("nothing stands still: %q\n%s", errs.String(), text.String())
	}
	for i := range int64(20) {
		w.note(pager.Wedge{Kind: pager.WedgedRead, Store: "data", Offset: i << 12, Len: 4096, Age: 12 * time.Second})
		w.print(show, &errs)
	}
	w.print(show, &errs)
	const first = "read of 4096 bytes at offset 0 of data for 12s"
	if got := errs.String(); strings.Count(got, "\n") != wedgedShown || !strings.HasPrefix(got, "uffdpager: does not end: "+first+"\n") {
		t.Errorf("printed:\n%s", got)
	}
	w.fill(&r)
	text.Reset()
	if err := r.writeText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  wedged       20 waits were longer than", first} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, text.String())
		}
	}
}
