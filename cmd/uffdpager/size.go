package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// size is a number of bytes on the command line: 4096, 64KiB, 1.5GiB. K, M, G
// and T alone and KB … TB mean the same powers of 1024, as everything here is
// made of pages.
type size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func parseSize(s string) (size, error) {
	number, unit := strings.TrimSpace(s), int64(1)
	if i := strings.LastIndexAny(number, "0123456789."); i+1 < len(number) {
		suffix := strings.ToLower(strings.TrimSpace(number[i+1:]))
		number = number[:i+1]
		known := suffix == "b"
		for _, u := range sizeUnits {
			full := strings.ToLower(u.name)
			if suffix == full || suffix == full[:1] || suffix == full[:1]+"b" {
				unit, known = u.bytes, true
			}
		}
		if !known {
			return 0, fmt.Errorf("size %q: unknown unit (KiB, MiB, GiB, TiB)", s)
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64/unit {
			return 0, fmt.Errorf("size %q is out of range", s)
		}
		return size(n * unit), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	switch {
	case err != nil || math.IsNaN(f) || strings.ContainsAny(number, "xXpPeE"):
		return 0, fmt.Errorf("size %q is not a number of bytes such as 4096, 64MiB or 1.5GiB", s)
	case f < 0 || f*float64(unit) >= math.MaxInt64:
		return 0, fmt.Errorf("size %q is out of range", s)
	case f*float64(unit) != math.Trunc(f*float64(unit)):
		return 0, fmt.Errorf("size %q is not a whole number of bytes", s)
	}
	return size(f * float64(unit)), nil
}

// Set implements pflag.Value.
func (z *size) Set(s string) error {
	n, err := parseSize(s)
	if err == nil {
		*z = n
	}
	return err
}

// Type implements pflag.Value.
func (z *size) Type() string { return "size" }

// String is exact and can be parsed again: the largest unit that leaves no
// rest.
func (z *size) String() string {
	for _, u := range sizeUnits {
		if n := int64(*z); n != 0 && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return strconv.FormatInt(int64(*z), 10)
}

// humanBytes is for reading, not for parsing: three significant digits.
func humanBytes(n int64) string {
	for _, u := range sizeUnits {
		if n >= u.bytes {
			return significant(float64(n)/float64(u.bytes)) + " " + u.name
		}
	}
	return fmt.Sprintf("%d B", n)
}

// ofBytes writes a part and its whole in the unit of the whole: 3.5/64.0 MiB.
func ofBytes(part, whole int64) string {
	for _, u := range sizeUnits {
		if whole >= u.bytes {
			return significant(float64(part)/float64(u.bytes)) + "/" + significant(float64(whole)/float64(u.bytes)) + " " + u.name
		}
	}
	return fmt.Sprintf("%d/%d B", part, whole)
}

func significant(f float64) string {
	switch {
	case f >= 99.95:
		return fmt.Sprintf("%.0f", f)
	case f >= 9.995:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// count writes a number with its thousands set apart.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
