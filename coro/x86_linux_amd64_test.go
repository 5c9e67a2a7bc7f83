//go:build !uffdpager_nointernals

package coro

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Our disassembler against binutils', over this test program: whatever ours
// does not refuse has the same length.
func TestInstructionLengthsAgreeWithObjdump(t *testing.T) {
	if _, err := exec.LookPath("objdump"); err != nil {
		t.Skip("there is no objdump: ", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("objdump", "-d", "-w", "-j", ".text", exe).Output()
	if err != nil {
		t.Fatal(err)
	}
	var known, unknown, wrong int
	line := regexp.MustCompile(`^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*(.*)$`)
	sp := regexp.MustCompile(`%([er]?sp|spl)\b`)
	bp := regexp.MustCompile(`%([er]?bp|bpl)\b`)
	memory := regexp.MustCompile(`\([^)]*\)`)
	all := os.Getenv("UFFDPAGER_TORTURE") != ""
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		m := line.FindStringSubmatch(s.Text())
		if m == nil || strings.Contains(m[3], "(bad)") {
			continue
		}
		var c []byte
		for _, h := range strings.Fields(m[2]) {
			b, _ := strconv.ParseUint(h, 16, 8)
			c = append(c, byte(b))
		}
		in, err := decode(append(slices.Clone(c), make([]byte, 16)...), 0)
		switch {
		case err != nil:
			unknown++
		case in.len != len(c):
			if wrong++; wrong < 20 {
				t.Errorf("%s: length %d", s.Text(), in.len)
			}
		default:
			known++
			// Whatever names SP or BP as an operand must be seen to do so.
			text := m[3]
			if i := strings.IndexAny(text, "#<"); i >= 0 {
				text = text[:i]
			}
			names := sp.MatchString(memory.ReplaceAllString(text, ""))
			if names && in.regs&(1<<4) == 0 && in.flow != flowStack {
				t.Errorf("%s: SP not seen", s.Text())
			}
			names = bp.MatchString(text)
			if names && in.regs&(1<<5) == 0 && !in.bp && in.flow != flowStack {
				t.Errorf("%s: BP not seen", s.Text())
			}
			if strings.Contains(text, "(%rsp") != in.stack {
				t.Errorf("%s: stack operand %v", s.Text(), in.stack)
			}
		}
		if known > 100000 && !all {
			break
		}
	}
	t.Logf("%d instructions alike, %d unknown", known, unknown)
	if known < 10000 || unknown > known/100 {
		t.Errorf("too few known")
	}
}
