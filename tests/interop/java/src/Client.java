import com.google.gson.Gson;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.grpc.CallOptions;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.xds.XdsChannelCredentials;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;

/** Takes calls to make until the process ends. */
final class Client {
  /** The one channel to a target. */
  private static final Map<String, ManagedChannel> CHANNELS = new ConcurrentHashMap<>();

  private final io.grpc.Channel channel;
  private final String method;
  private final int count;
  private final int atOnce;
  private final String until;
  private final long deadline;

  /** What came of one call. */
  record Outcome(String server, int status, String message, long millis) {}

  private Client(Map<String, List<String>> query) {
    Metadata headers = new Metadata();
    for (String header : query.getOrDefault("header", List.of())) {
      String[] parts = header.split(":", 2);
      headers.put(Metadata.Key.of(parts[0], Metadata.ASCII_STRING_MARSHALLER), parts[1]);
    }
    channel =
        ClientInterceptors.intercept(
            CHANNELS.computeIfAbsent(first(query, "target"), Client::channelTo),
            MetadataUtils.newAttachHeadersInterceptor(headers));
    method = first(query, "method");
    count = Integer.parseInt(first(query, "count"));
    atOnce = Integer.parseInt(first(query, "at-once"));
    until = first(query, "until");
    deadline = Long.parseLong(first(query, "deadline"));
  }

  static void answer() throws IOException {
    HttpServer http = HttpServer.create(new InetSocketAddress("127.0.0.1", 9000), 0);
    http.setExecutor(Executors.newCachedThreadPool());
    http.createContext("/calls", Client::calls);
    http.start();
    System.out.println("ready");
  }

  private static void calls(HttpExchange exchange) throws IOException {
    StringBuilder lines = new StringBuilder();
    int status = 200;
    try {
      Gson json = new Gson();
      for (Outcome outcome : new Client(read(exchange.getRequestURI().getRawQuery())).make()) {
        lines.append(json.toJson(outcome)).append('\n');
      }
    } catch (RuntimeException | InterruptedException error) {
      status = 400;
      lines.append(error);
    }
    byte[] body = lines.toString().getBytes(StandardCharsets.UTF_8);
    exchange.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }

  private List<Outcome> make() throws InterruptedException {
    List<Outcome> all = Collections.synchronizedList(new ArrayList<>());
    AtomicInteger made = new AtomicInteger();
    AtomicBoolean ended = new AtomicBoolean();
    var workers = Executors.newFixedThreadPool(atOnce);
    for (int worker = 0; worker < atOnce; worker++) {
      workers.execute(
          () -> {
            while (!ended.get() && made.incrementAndGet() <= count) {
              Outcome outcome = once();
              all.add(outcome);
              if (!until.isEmpty() && until.equals(outcome.server())) {
                ended.set(true);
              }
            }
          });
    }
    workers.shutdown();
    workers.awaitTermination(1, TimeUnit.MINUTES);
    return all;
  }

  private Outcome once() {
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(deadline, TimeUnit.MILLISECONDS);
    long begun = System.nanoTime();
    String server = "";
    io.grpc.Status status = io.grpc.Status.OK;
    try {
      byte[] answer = ClientCalls.blockingUnaryCall(channel, Talk.method(method), options, new byte[0]);
      server = new String(answer, StandardCharsets.UTF_8);
    } catch (StatusRuntimeException error) {
      status = error.getStatus();
    }
    long millis = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - begun);
    String message = status.getDescription() == null ? "" : status.getDescription();
    return new Outcome(server, status.getCode().value(), message, millis);
  }

  private static ManagedChannel channelTo(String target) {
    return Grpc.newChannelBuilder(target, XdsChannelCredentials.create(InsecureChannelCredentials.create())).build();
  }

  private static Map<String, List<String>> read(String query) {
    Map<String, List<String>> fields = new HashMap<>();
    for (String field : query.split("&")) {
      String[] parts = field.split("=", 2);
      String value = URLDecoder.decode(parts[1], StandardCharsets.UTF_8);
      fields.computeIfAbsent(parts[0], name -> new ArrayList<>()).add(value);
    }
    return fields;
  }

  private static String first(Map<String, List<String>> query, String name) {
    return query.getOrDefault(name, List.of("")).get(0);
  }
}
