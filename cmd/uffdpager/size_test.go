package main

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]size{
		"0": 0, "4096": 4096, "64KiB": 64 << 10, "64k": 64 << 10, "64KB": 64 << 10, "1GiB": 1 << 30, "1 GiB": 1 << 30,
		"1.5GiB": 3 << 29, "2TiB": 2 << 40, "0.5KiB": 512, "100B": 100, "64mib": 64 << 20,
		"9223372036854775807": math.MaxInt64,
	} {
		if got, err := parseSize(s); got != want || err != nil {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "GiB", "1XiB", "-1", "-1KiB", "1e3", "0x10", "NaN", "Inf", "1.2.3", "0.3KiB",
		"9223372036854775808", "8388608TiB", "1 2", "1KiB2"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q is taken for %d", s, got)
		}
	}
}

func TestSizeStringIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := size(rapid.Int64Range(0, math.MaxInt64).Draw(t, "size") >> rapid.IntRange(0, 62).Draw(t, "shift"))
		if got, err := parseSize(z.String()); got != z || err != nil {
			t.Fatalf("%d is written %q and read %d, %v", z, z.String(), got, err)
		}
	})
}

func TestNumbersForReading(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 4096: "4.00 KiB", 1<<20 - 1: "1024 KiB", 3 << 29: "1.50 GiB", 64 << 20: "64.0 MiB", 1 << 40: "1.00 TiB"} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
	if got := ofBytes(7<<19, 64<<20); got != "3.50/64.0 MiB" {
		t.Errorf("3.5 of 64 MiB: %q", got)
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1234: "-1,234", -123: "-123"} {
		if got := count(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
