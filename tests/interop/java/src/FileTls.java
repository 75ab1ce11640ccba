import io.grpc.ChannelCredentials;
import io.grpc.TlsChannelCredentials;
import io.grpc.util.AdvancedTlsX509KeyManager;
import io.grpc.util.AdvancedTlsX509TrustManager;
import io.grpc.xds.XdsCredentialsProvider;
import java.io.File;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * Mutual TLS to the control plane by files, for `channel_creds` of a bootstrap: what gRFC A65 describes as `tls`, of which
 * Java reads none of the files.
 */
public final class FileTls extends XdsCredentialsProvider {
  private static final ScheduledExecutorService READER =
      Executors.newSingleThreadScheduledExecutor(
          work -> {
            Thread thread = new Thread(work, "credentials");
            thread.setDaemon(true);
            return thread;
          });

  @Override
  protected ChannelCredentials newChannelCredentials(Map<String, ?> config) {
    try {
      AdvancedTlsX509KeyManager key = new AdvancedTlsX509KeyManager();
      key.updateIdentityCredentials(
          file(config, "certificate_file"), file(config, "private_key_file"), 1, TimeUnit.MINUTES, READER);
      AdvancedTlsX509TrustManager roots = AdvancedTlsX509TrustManager.newBuilder().build();
      roots.updateTrustCredentials(file(config, "ca_certificate_file"), 1, TimeUnit.MINUTES, READER);
      return TlsChannelCredentials.newBuilder().keyManager(key).trustManager(roots).build();
    } catch (Exception error) {
      throw new IllegalArgumentException("files of the bootstrap's channel_creds", error);
    }
  }

  private static File file(Map<String, ?> config, String name) {
    return new File((String) config.get(name));
  }

  @Override
  protected String getName() {
    return "heddle_file_tls";
  }

  @Override
  public boolean isAvailable() {
    return true;
  }

  @Override
  public int priority() {
    return 5;
  }
}
