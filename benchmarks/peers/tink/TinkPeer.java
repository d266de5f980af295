import com.google.crypto.tink.Aead;
import com.google.crypto.tink.KeysetHandle;
import com.google.crypto.tink.RegistryConfiguration;
import com.google.crypto.tink.aead.AeadConfig;
import com.google.crypto.tink.aead.PredefinedAeadParameters;
import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.util.Arrays;

/**
 * Tink for Java as a peer: one request a line on standard input, one answer a line on standard output.
 *
 * <pre>seal VALUES SIZE  or  open VALUES SIZE   ->   CPU-NANOSECONDS WALL-NANOSECONDS</pre>
 *
 * CPU time is that of the whole process: garbage collection and compilation are part of what its users pay.
 */
public final class TinkPeer {
    private static int sink;

    public static void main(String[] args) throws Exception {
        AeadConfig.register();
        KeysetHandle handle = KeysetHandle.generateNew(PredefinedAeadParameters.AES256_GCM);
        Aead aead = handle.getPrimitive(RegistryConfiguration.get(), Aead.class);
        OperatingSystemMXBean process = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        byte[] associatedData = new byte[80];
        Arrays.fill(associatedData, (byte) 7);
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in));
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            String[] words = line.trim().split(" ");
            boolean seal = words[0].equals("seal");
            int values = Integer.parseInt(words[1]);
            byte[] plaintext = new byte[Integer.parseInt(words[2])];
            Arrays.fill(plaintext, (byte) 6);
            byte[] sealed = aead.encrypt(plaintext, associatedData);
            if (!Arrays.equals(plaintext, aead.decrypt(sealed, associatedData))) {
                throw new IllegalStateException("it does not open what it sealed");
            }
            long cpu = process.getProcessCpuTime();
            long wall = System.nanoTime();
            for (int n = 0; n < values; n++) {
                byte[] out = seal ? aead.encrypt(plaintext, associatedData) : aead.decrypt(sealed, associatedData);
                sink += out.length;
            }
            System.out.println((process.getProcessCpuTime() - cpu) + " " + (System.nanoTime() - wall));
        }
    }
}
