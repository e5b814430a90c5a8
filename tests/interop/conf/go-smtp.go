// A server of go-smtp, which does not read the chunk of a BDAT that it refuses.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/emersion/go-smtp"
)

var delivered atomic.Int64

type backend struct{}

func (backend) NewSession(*smtp.Conn) (smtp.Session, error) { return &session{}, nil }

type session struct {
	sender string
	boxes  []string
}

func (s *session) Reset()        { s.sender, s.boxes = "", nil }
func (s *session) Logout() error { return nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.sender = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	box, _, _ := strings.Cut(to, "@")
	if box != "alice" && box != "bob" {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "User unknown"}
	}
	s.boxes = append(s.boxes, box)
	return nil
}

func (s *session) Data(content io.Reader) error {
	data, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	data = append([]byte("Return-Path: <"+s.sender+">\n"), bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))...)
	for _, box := range s.boxes {
		folder := filepath.Join("/srv/mail", box, "new")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		path := filepath.Join(folder, fmt.Sprint(delivered.Add(1)))
		if err := os.WriteFile(path+".part", data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(path+".part", path); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	server := smtp.NewServer(backend{})
	server.Addr, server.Domain = os.Args[1], os.Args[2]
	server.Debug = os.Stdout
	log.Fatal(server.ListenAndServe())
}
