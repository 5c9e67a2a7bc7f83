package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDefectsApply: every defect can still be put into the tree as it is, and
// the test that is to notice it exists.
func TestDefectsApply(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Skip("there is no go command: ", err)
	}
	names := map[string]bool{}
	for _, m := range table {
		t.Run(m.name, func(t *testing.T) {
			if names[m.name] {
				t.Error("the name is there twice")
			}
			names[m.name] = true
			if _, err := m.overlay(root, t.TempDir()); err != nil {
				t.Error(err)
			}
			name, _, _ := strings.Cut(m.test, "/")
			is := regexp.MustCompile(`(?m)^func ` + name + `\(t \*testing\.T\)`)
			files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(m.pkg), "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if is.Match(data) {
					return
				}
			}
			t.Errorf("there is no %s in %s", name, m.pkg)
		})
	}
}

// TestJudge: the verdict on a test run follows from what it says.
func TestJudge(t *testing.T) {
	failed := os.ErrInvalid
	for _, c := range []struct {
		output   string
		err      error
		how      string
		evidence string
	}{
		{"ok  \tpkg\t0.1s\n", nil, survived, ""},
		{"# pkg\n./x.go:1: undefined: y\nFAIL\tpkg [build failed]\n", failed, broken, ""},
		{"panic: test timed out after 25s\n\tx_test.go:3: z\nFAIL", failed, hung, ""},
		{"--- FAIL: TestX\n    x_test.go:9: the child hung; its goroutines:\n", failed, hung, ""},
		{"--- FAIL: TestX\n    x_test.go:3: seed: N=1\n    x_test.go:9: got 1, want 2\n", failed, asserted, "got 1, want 2"},
		{"--- FAIL: TestX\n    x_test.go:9: the child failed (exit status 1):\n            y_test.go:1: lost\n", failed, asserted, "lost"},
		{"fatal error: fault\n[signal SIGBUS]\n", failed, crashed, "fatal error: fault"},
	} {
		if how, evidence := judge(c.output, c.err); how != c.how || evidence != c.evidence {
			t.Errorf("judged %q %q, want %q %q, of:\n%s", how, evidence, c.how, c.evidence, c.output)
		}
	}
}

// TestDocsOfSome: rows of what was not tried stay as they are; those of defects
// that are no more go.
func TestDocsOfSome(t *testing.T) {
	name := filepath.Join(t.TempDir(), "testing.md")
	first, second, last := table[0].name, table[1].name, table[len(table)-1].name
	text := "before\n" + tableBegins + "\n| defect |\n|---|\n| " + first + " | a |\n| " + second + " | b |\n| nobody | c |\n\n" + tableEnds + "after\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeDocs(name, map[string]string{second: "| " + second + " | new |", last: "| " + last + " | new |"}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, want := string(data), "| "+first+" | a |\n| "+second+" | new |\n| "+last+" | new |\n\n"+tableEnds+"after\n"
	if !strings.HasPrefix(got, "before\n"+tableBegins) || !strings.HasSuffix(got, "|\n"+want) {
		t.Errorf("the table is now\n%s", got)
	}
}
