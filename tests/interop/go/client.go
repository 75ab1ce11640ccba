package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	xdscredentials "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// answer takes calls to make until the process ends.
func answer() error {
	http.HandleFunc("/calls", func(w http.ResponseWriter, r *http.Request) {
		wanted, err := read(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		// Whole, so that it is not chunked.
		var body bytes.Buffer
		lines := json.NewEncoder(&body)
		for _, outcome := range wanted.make() {
			lines.Encode(outcome)
		}
		w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
		w.Write(body.Bytes())
	})
	fmt.Println("ready")
	return http.ListenAndServe("127.0.0.1:9000", nil)
}

// calls is what a request asks for.
type calls struct {
	channel *grpc.ClientConn
	method  string
	headers metadata.MD
	// How many, how many of these at once, and whose answer ends all.
	count, atOnce int
	until         string
	deadline      time.Duration
}

// outcome is what came of one call.
type outcome struct {
	Server  string `json:"server"`
	Status  uint32 `json:"status"`
	Message string `json:"message"`
	Millis  int64  `json:"millis"`
}

func read(query url.Values) (*calls, error) {
	channel, err := channelTo(query.Get("target"))
	if err != nil {
		return nil, err
	}
	headers := metadata.MD{}
	for _, header := range query["header"] {
		name, value, _ := strings.Cut(header, ":")
		headers.Append(name, value)
	}
	return &calls{
		channel:  channel,
		method:   "/heddle.test.Talk/" + query.Get("method"),
		headers:  headers,
		count:    number(query.Get("count")),
		atOnce:   number(query.Get("at-once")),
		until:    query.Get("until"),
		deadline: time.Duration(number(query.Get("deadline"))) * time.Millisecond,
	}, nil
}

func (c *calls) make() []outcome {
	var (
		made    atomic.Int64
		ended   atomic.Bool
		workers sync.WaitGroup
		lock    sync.Mutex
		all     []outcome
	)
	for range c.atOnce {
		workers.Go(func() {
			for !ended.Load() && made.Add(1) <= int64(c.count) {
				outcome := c.once()
				if c.until != "" && outcome.Server == c.until {
					ended.Store(true)
				}
				lock.Lock()
				all = append(all, outcome)
				lock.Unlock()
			}
		})
	}
	workers.Wait()
	return all
}

func (c *calls) once() outcome {
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(context.Background(), c.headers), c.deadline)
	defer cancel()
	request, response := []byte{}, []byte{}
	begun := time.Now()
	err := c.channel.Invoke(ctx, c.method, &request, &response)
	return outcome{
		Server:  string(response),
		Status:  uint32(status.Code(err)),
		Message: status.Convert(err).Message(),
		Millis:  time.Since(begun).Milliseconds(),
	}
}

var (
	channels = map[string]*grpc.ClientConn{}
	lock     sync.Mutex
)

// channelTo is the one channel to a target.
func channelTo(target string) (*grpc.ClientConn, error) {
	lock.Lock()
	defer lock.Unlock()
	if channel, known := channels[target]; known {
		return channel, nil
	}
	credentials, err := xdscredentials.NewClientCredentials(
		xdscredentials.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return nil, err
	}
	channel, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(credentials), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err == nil {
		channels[target] = channel
	}
	return channel, err
}
