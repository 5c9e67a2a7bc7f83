package main

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
)

// countLines counts the lines of a file of any size in at most 16 MiB of memory.
func countLines(name string) (lines int, err error) {
	p, err := pager.New(pager.Options{Budget: 16 << 20})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	s, err := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	r, err := p.Map(s, pager.RegionOptions{}) // r owns s from here on
	if err != nil {
		return 0, err
	}
	defer r.Close()

	// r.Bytes() is the file: any code that takes a []byte takes it. Guard makes
	// an I/O error the error of this call; without it the program would die of
	// it, as with mmap.
	err = pager.Guard(func() error {
		lines = bytes.Count(r.Bytes(), []byte("\n"))
		return nil
	})
	return lines, err
}

func TestReadmeSampleWorks(t *testing.T) {
	needRaw(t)
	name := filepath.Join(t.TempDir(), "lines")
	const lines = 700_000 // 35 MB: more than the sample's budget
	text := strings.Repeat("a line of text that is forty-nine bytes in length\n", lines)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := countLines(name); got != lines || err != nil {
		t.Errorf("%d lines, %v; want %d", got, err, lines)
	}
	if _, err := countLines(name + ".missing"); err == nil {
		t.Error("a file that is not there has lines")
	}
}

// The sample in the README is, word for word, the function above.
func TestReadmeSampleIsTested(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(blocks) != 1 {
		t.Fatalf("%d blocks of Go in the README, but one is tested", len(blocks))
	}
	fset := token.NewFileSet()
	src, err := os.ReadFile("readme_linux_test.go")
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(fset, "", src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "countLines" {
			tested := src[fset.Position(fn.Doc.Pos()).Offset:fset.Position(fn.End()).Offset]
			if got := bytes.TrimSpace(blocks[0][1]); !bytes.Equal(got, tested) {
				t.Errorf("the README has\n%s\n\nthe test has\n%s", got, tested)
			}
		}
	}
	if pretty, err := format.Source(blocks[0][1]); err != nil || !bytes.Equal(pretty, blocks[0][1]) {
		t.Errorf("the README's sample is not formatted as gofmt has it: %v", err)
	}
}

// What the README tells people to type exists.
func TestReadmeCommandsParse(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^(?:uffdpager|go run \./cmd/uffdpager) ([^#\n]*)`).FindAllSubmatch(readme, -1)
	if len(lines) < 5 {
		t.Fatalf("only %d commands found", len(lines))
	}
	for _, l := range lines {
		args := strings.Fields(strings.ReplaceAll(string(l[1]), "FILE", "/dev/null/none"))
		// With a flag that is wrong the command does nothing, but says so only
		// after the others were understood.
		says := "unknown flag: --no-such-flag"
		if args[0] == "run" {
			args, says = append(args, "--idle", "0s"), "--idle is shorter"
		} else {
			args = append(args, "--no-such-flag")
		}
		if _, _, stderr := command(args...); !strings.Contains(stderr, says) {
			t.Errorf("uffdpager %s: %s", l[1], stderr)
		}
	}
}

// No document points to what is not there.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range append(files, "../../README.md", "../../CHANGELOG.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllSubmatch(text, -1) {
			link := string(m[1])
			if strings.Contains(link, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), link)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
