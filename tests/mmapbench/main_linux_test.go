package main

import (
	"encoding/csv"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestEverySecondIsThere: both ways, second by second, in the CSV and the plot.
// How many pages were read is the machine's affair, but some must have been.
func TestEverySecondIsThere(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	out, plot := filepath.Join(dir, "out.csv"), filepath.Join(dir, "out.svg")
	if err := run(options{size: 32 << 20, budget: 2 << 20, workers: 8, lasts: 2 * time.Second}, out, plot); err != nil {
		if strings.Contains(err.Error(), "raw access") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil || len(rows) != 5 {
		t.Fatalf("%d rows, %v; want a head and two seconds of two ways", len(rows), err)
	}
	read := map[string]bool{}
	for _, r := range rows[1:] {
		read[r[0]] = read[r[0]] || r[2] != "0"
	}
	if !read["pager"] || !read["mmap"] {
		t.Errorf("nothing was read: %v", rows)
	}
	data, err := os.ReadFile(plot)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(data, new(struct{})); err != nil {
		t.Errorf("the plot is not XML: %v", err)
	}
}
